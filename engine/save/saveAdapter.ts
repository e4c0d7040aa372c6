import type { Tokenizer } from '../data/tokenizer.ts'
import { snapshotOrigin } from '../hub/repository.ts'
import { writeFolderAtomic } from '../io/atomicFile.ts'
import type { FileSystem } from '../io/fileSystem.ts'
import { writePeftAdapter, type AdapterTensor } from '../io/peftAdapter.ts'
import type { LoraConfig } from '../io/peftConfig.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { copyTokenizer, writeTokenizer } from './writeTokenizer.ts'

/** Little-endian bytes of fp32 values. */
export const floatBytes = (values: Float32Array): Uint8Array => new Uint8Array(values.buffer, values.byteOffset, values.byteLength)

/** How PEFT describes what is trained here. */
export function adapterConfig(model: LoadedModel): LoraConfig {
  const { training, modules } = model.patched
  if (training.kind !== 'lora') throw new Error('only a LoRA run has an adapter')
  const { folder } = model.patched.model
  // A base of the Hub is named as others can find it.
  const origin = snapshotOrigin(folder)
  const lastName = (name: string) => name.slice(name.lastIndexOf('.') + 1)
  const linear = modules.filter(({ experts }) => experts === undefined)
  const stacks = modules.filter(({ parameter }) => parameter !== undefined)
  const named = new Set(linear.map(({ module }) => lastName(module)))
  // Experts whose rank differs, under the pattern that PEFT writes for them.
  const special = [...new Map(stacks.filter(({ rank }) => rank !== training.r).map((module) => [`.*\\.${lastName(module.parameter!)}`, module])).entries()]
  return {
    baseModel: origin?.id ?? folder, revision: origin?.revision ?? null, taskType: 'CAUSAL_LM', r: training.r, alpha: training.alpha, dropout: training.dropout,
    // Targets that mean experts only stand in targetParameters.
    targetModules: training.targets === 'all-linear' ? [...named] : training.targets.filter((target) => named.has(lastName(target))),
    targetParameters: [...new Set(stacks.map(({ parameter }) => parameter!.split('.').slice(-3).join('.')))],
    modulesToSave: training.modulesToSave, rslora: training.rslora,
    rankPattern: { ...training.rankPattern, ...Object.fromEntries(special.map(([pattern, { rank }]) => [pattern, rank])) },
    alphaPattern: { ...training.alphaPattern, ...Object.fromEntries(special.map(([pattern, { rank, scale }]) => [pattern, scale * (training.rslora ? Math.sqrt(rank) : rank)])) },
    initLoraWeights: training.init ?? true,
  }
}

/** Every trained matrix under PEFT's names, in fp32. */
function adapterTensors(model: LoadedModel): AdapterTensor[] {
  return model.patched.layout.parameters.map(({ name, shape }) => {
    const lora = /^(.*)\.(lora_[AB])\.weight$/.exec(name)
    const [module, part] = lora === null ? [name.replace(/\.weight$/, ''), 'weight' as const] : [lora[1]!, lora[2] as 'lora_A' | 'lora_B']
    return { module, part, dtype: 'F32', shape, data: () => floatBytes(model.readParameter(name)) }
  })
}

/** The adapter's two files into an existing folder; PEFT loads them unchanged. */
export async function writeAdapterFiles(model: LoadedModel, folder: string, fs?: FileSystem): Promise<void> {
  await writePeftAdapter(folder, adapterConfig(model), adapterTensors(model), fs === undefined ? {} : { fs })
}

export interface AdapterOptions {
  readonly fs?: FileSystem
  /** Default: the base model's, as it is. */
  readonly tokenizer?: Tokenizer
}

/** A complete adapter folder: weights, configuration, tokenizer. Appears whole or not at all. */
export async function saveAdapter(model: LoadedModel, folder: string, { fs, tokenizer }: AdapterOptions = {}): Promise<void> {
  await writeFolderAtomic(
    folder,
    async (draft) => {
      await writeAdapterFiles(model, draft, fs)
      if (tokenizer === undefined) await copyTokenizer(model.patched.model.folder, draft)
      else await writeTokenizer(tokenizer, draft)
    },
    fs === undefined ? {} : { fs },
  )
}
