import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { writeFileAtomic } from './atomicFile.ts'
import type { FileSystem } from './fileSystem.ts'
import { readModelFolder, type ModelFolder } from './modelFolder.ts'
import { loraConfigJson, loraScaling, readLoraConfig, type LoraConfig } from './peftConfig.ts'
import { quote } from './printable.ts'
import { writeSafetensors, type NamedTensor } from './safetensorsWriter.ts'
import { openTensorSource, type TensorLocation } from './tensorSource.ts'

/** The matrices of one adapted module. */
export interface LoraModule {
  /** Path in the base model: model.layers.0.self_attn.q_proj. */
  readonly module: string
  /** [r, in]; of an embedding [r, vocabulary]. */
  readonly a: TensorLocation
  /** [out, r]; of an embedding [hidden, r]. */
  readonly b: TensorLocation
  /** [out]: DoRA's lengths of the rows. */
  readonly magnitude?: TensorLocation
  readonly embedding: boolean
  readonly r: number
  readonly alpha: number
  /** Factor of B·A. */
  readonly scale: number
}

export interface PeftAdapter {
  readonly path: string
  readonly folder: ModelFolder
  /** Path of adapter_model.safetensors. */
  readonly weights: string
  readonly config: LoraConfig
  readonly modules: ReadonlyMap<string, LoraModule>
  /** Tensors stored whole (modules_to_save, resized embeddings), by their name in the base model: lm_head.weight. */
  readonly saved: ReadonlyMap<string, TensorLocation>
  readonly warnings: readonly string[]
}

export const adapterWeightsFile = 'adapter_model.safetensors'
export const adapterConfigFile = 'adapter_config.json'
const prefix = 'base_model.model.'

/** What a tensor of an adapter file is; `weight` and `bias` belong to modules stored whole. */
export type AdapterPart =
  'lora_A' | 'lora_B' | 'lora_embedding_A' | 'lora_embedding_B' | 'lora_magnitude_vector' | 'weight' | 'bias'

/** The tensor's name in adapter_model.safetensors. */
export function adapterKey(module: string, part: AdapterPart): string {
  return `${prefix}${module}.${part === 'lora_A' || part === 'lora_B' ? `${part}.weight` : part}`
}

const loraKey = /^(.+)\.lora_(A|B)(?:\.default)?\.weight$/
/** PEFT writes the name bare; its module calls the same numbers `weight`. */
const magnitudeKey = /^(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$/
const embeddingKey = /^(.+)\.lora_embedding_(A|B)(?:\.default)?$/
const foreignParts: readonly [RegExp, string][] = [
  [/\.lora_[AB](\.default)?\.bias$/, 'a bias in the adapter (lora_bias)'],
  [/\.trainable_tokens_delta$/, 'single trained embedding rows (trainable_token_indices)'],
]

interface Halves {
  a?: TensorLocation
  b?: TensorLocation
  magnitude?: TensorLocation
  embedding: boolean
}

function completeModule(module: string, { a, b, magnitude, embedding }: Halves, config: LoraConfig, where: string): LoraModule {
  if (a === undefined || b === undefined)
    throw new UnslothError('MODEL_INVALID', `${where}: module ${quote(module)} lacks lora_${a === undefined ? 'A' : 'B'}.`, {
      hint: 'The adapter is incomplete: fetch or save it again.',
    })
  if (a.shape.length !== 2 || b.shape.length !== 2)
    throw new UnslothError(
      'MODEL_UNSUPPORTED',
      `${where}: module ${quote(module)} is not a linear layer or an embedding (lora_A has ${a.shape.length} dimensions).`,
    )
  const scaling = loraScaling(config, module, where)
  const stacked = config.targetParameters.length > 0 && a.shape[0]! % scaling.r === 0
  if (a.shape[0] !== b.shape[1] || (a.shape[0] !== scaling.r && !stacked))
    throw new UnslothError(
      'MODEL_INVALID',
      `${where}: module ${quote(module)}: lora_A [${a.shape.join(', ')}] and lora_B [${b.shape.join(', ')}] do not fit ` +
        `r = ${scaling.r} of ${adapterConfigFile}.`,
      { hint: 'Configuration and weights belong to different adapters, or "r" or "rank_pattern" was changed.' },
    )
  if (config.dora && embedding)
    throw new UnslothError(
      'MODEL_UNSUPPORTED',
      `${where}: module ${quote(module)} is an embedding with DoRA, which is not supported.`,
      { hint: 'Merge the adapter into its base model with PEFT, and use the merged model.' },
    )
  if (config.dora !== (magnitude !== undefined))
    throw new UnslothError(
      'MODEL_INVALID',
      `${where}: module ${quote(module)} ${config.dora ? 'lacks' : 'has'} lora_magnitude_vector, but ${adapterConfigFile} says use_dora: ${config.dora}.`,
      { hint: 'Configuration and weights belong to different adapters.' },
    )
  if (magnitude !== undefined && magnitude.shape.join() !== String(b.shape[0]))
    throw new UnslothError(
      'MODEL_INVALID',
      `${where}: module ${quote(module)}: lora_magnitude_vector [${magnitude.shape.join(', ')}] does not fit lora_B [${b.shape.join(', ')}].`,
      { hint: 'The adapter is damaged: fetch or save it again.' },
    )
  return { module, a, b, ...(magnitude === undefined ? {} : { magnitude }), embedding, ...scaling }
}

/** Opens a PEFT LoRA adapter: configuration and tensor descriptions, no data. */
export async function openPeftAdapter(path: string, changedBase = false): Promise<PeftAdapter> {
  const folder = await readModelFolder(path, 'adapter')
  const { lora, warnings } = readLoraConfig(folder.adapterConfig!, changedBase)
  const names = await readdir(path)
  const where = join(path, adapterWeightsFile)
  if (!names.includes(adapterWeightsFile))
    throw new UnslothError('FILE_NOT_FOUND', `${where}: no such file.`, {
      hint: names.includes('adapter_model.bin')
        ? 'The adapter is stored as adapter_model.bin (pickle): save it again with PEFT as safetensors.'
        : 'The adapter is incomplete: fetch it again.',
    })
  const source = await openTensorSource(where)
  const halves = new Map<string, Halves>()
  const saved = new Map<string, TensorLocation>()
  for (const [key, tensor] of source.tensors) {
    const foreign = foreignParts.find(([pattern]) => pattern.test(key))
    if (foreign !== undefined)
      throw new UnslothError('MODEL_UNSUPPORTED', `${where}: tensor ${quote(key)} holds ${foreign[1]}, which is not supported.`, {
        hint: 'Merge the adapter into its base model with PEFT, and use the merged model.',
      })
    if (!key.startsWith(prefix))
      throw new UnslothError('FILE_FORMAT', `${where}: tensor ${quote(key)} does not begin with "${prefix}".`, {
        hint: 'The file is not a PEFT adapter.',
      })
    if (!['F32', 'F16', 'BF16'].includes(tensor.dtype))
      throw new UnslothError('MODEL_UNSUPPORTED', `${where}: tensor ${quote(key)} has type ${tensor.dtype}.`, {
        hint: 'Save the adapter in float32, bfloat16 or float16.',
      })
    const inner = key.slice(prefix.length)
    const embedding = embeddingKey.exec(inner)
    const owner = magnitudeKey.exec(inner)?.[1]
    if (owner !== undefined) {
      halves.set(owner, { embedding: false, ...halves.get(owner), magnitude: tensor })
      continue
    }
    const [, module, half] = embedding ?? loraKey.exec(inner) ?? []
    if (module === undefined) {
      saved.set(inner.replace(/\.(?:base_layer|modules_to_save\.default)\.(weight|bias)$/, '.$1'), tensor)
      continue
    }
    const pair = halves.get(module) ?? { embedding: false }
    pair.embedding ||= embedding !== null
    pair[half === 'A' ? 'a' : 'b'] = tensor
    halves.set(module, pair)
  }
  if (halves.size === 0 && saved.size === 0)
    throw new UnslothError('MODEL_INVALID', `${where}: the file has no tensors.`, {
      hint: 'The adapter is empty: save or fetch it again.',
    })
  const modules = new Map([...halves].map(([module, pair]) => [module, completeModule(module, pair, lora, where)]))
  return { path, folder, weights: where, config: lora, modules, saved, warnings: [...warnings, ...source.warnings] }
}

/** One tensor to save; see NamedTensor for `data`. */
export interface AdapterTensor extends Omit<NamedTensor, 'name'> {
  readonly module: string
  readonly part: AdapterPart
}

/**
 * Writes adapter_model.safetensors and adapter_config.json into an existing folder, each in one step, the configuration last.
 * PEFT loads the result unchanged.
 */
export async function writePeftAdapter(
  folder: string,
  config: LoraConfig,
  tensors: readonly AdapterTensor[],
  options: { fs?: FileSystem } = {},
): Promise<void> {
  const named = tensors.map(({ module, part, ...tensor }) => ({ ...tensor, name: adapterKey(module, part) }))
  await writeSafetensors(join(folder, adapterWeightsFile), named, options)
  await writeFileAtomic(join(folder, adapterConfigFile), loraConfigJson(config), options)
}
