import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import type { Tokenizer } from '../data/tokenizer.ts'
import type { DType } from '../graph/dtype.ts'
import { writeFileAtomic, writeFolderAtomic } from '../io/atomicFile.ts'
import type { FileSystem } from '../io/fileSystem.ts'
import { readJsonObject } from '../io/modelFolder.ts'
import { pythonJson } from '../io/pythonJson.ts'
import { writeTensors, type NamedTensor } from '../io/safetensorsWriter.ts'
import { ModelWriter } from '../io/tensorSink.ts'
import { pieceShape } from '../model/weightTable.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { describeModel, patchModel, untiedHead } from '../runtime/patchedModel.ts'
import { Runtime } from '../runtime/runtime.ts'
import { relativeError } from '../verify/relativeError.ts'
import { allLogits } from '../verify/passes.ts'
import { mergedTensor } from './merge.ts'
import { copyTokenizer, writeTokenizer } from './writeTokenizer.ts'

export interface MergeOptions {
  readonly maxShardSize: string
  /** Token rows on which the saved model is compared with the trained one. */
  readonly probes: readonly Int32Array[]
  readonly fs?: FileSystem
  /** Default: the base model's, as it is. */
  readonly tokenizer?: Tokenizer
}

export interface MergeCheck {
  /** ‖logits(merged) − logits(trained)‖ / ‖logits(trained)‖. */
  readonly error: number
  readonly allowed: number
}

/** What rounding every weight to the stored type may do to the logits; measured 2e-3 to 8e-3 in bf16 on real models. */
const allowedError: Readonly<Record<'bf16' | 'f16' | 'f32', number>> = { bf16: 3e-2, f16: 1e-2, f32: 1e-4 }

const fileTypes = { bf16: 'BF16', f16: 'F16', f32: 'F32' } as const

/** The type of a merged model: the one the base is stored in, or was in before it was quantised. */
export function storedType(model: LoadedModel): keyof typeof fileTypes {
  const { quantised, source } = model.patched.model
  const [first] = quantised.values()
  if (first !== undefined && first.dtype !== 'f32') return first.dtype
  const types = new Set([...source.tensors.values()].map(({ dtype }) => dtype))
  const only: Readonly<Record<string, keyof typeof fileTypes>> = { BF16: 'bf16', F16: 'f16' }
  return types.size === 1 ? (only[[...types][0]!] ?? 'bf16') : 'bf16'
}

/**
 * Writes the trained model as a plain one in 16 bits: weights tensor by tensor, config, generation settings, tokenizer. Before
 * the folder appears the model is loaded again from it and its logits are compared with those of the trained model; a mismatch
 * fails the save.
 */
export async function saveMerged(model: LoadedModel, folder: string, options: MergeOptions): Promise<MergeCheck> {
  const { fs } = options
  const type = storedType(model)
  return writeFolderAtomic(
    folder,
    async (draft) => {
      await writeWeights(model, draft, type, options)
      await writeConfig(model, draft, type, options.tokenizer?.padId)
      if (options.tokenizer === undefined) await copyTokenizer(model.patched.model.folder, draft)
      else await writeTokenizer(options.tokenizer, draft)
      return checkMerged(model, draft, type, options.probes)
    },
    fs === undefined ? {} : { fs },
  )
}

/** Whether a tied model no longer is: a copy of its embedding or head was trained beside the other. */
const isUntied = ({ patched }: LoadedModel): boolean =>
  patched.model.spec.tied && patched.training.kind === 'lora' && patched.full.some(({ kind }) => kind !== 'bias')

async function writeWeights(
  model: LoadedModel,
  folder: string,
  type: DType & keyof typeof fileTypes,
  options: MergeOptions,
): Promise<void> {
  const base = model.patched.model
  const entries = isUntied(model) ? [...base.entries, untiedHead(base)] : base.entries
  const tensors: NamedTensor[] = entries.flatMap((entry) =>
    entry.pieces.map((piece) => ({
      name: piece.name,
      dtype: fileTypes[type],
      shape: pieceShape(entry, piece),
      data: () => mergedTensor(model, entry, piece, type),
    })),
  )
  const writer = await ModelWriter.open(folder, tensors, {
    maxShardSize: options.maxShardSize,
    ...(options.fs === undefined ? {} : { fs: options.fs }),
  })
  await writeTensors(writer, tensors)
}

/** The base's config without quantisation, with the token that pads; an own head or a trained copy of a tied embedding is no longer tied. */
async function writeConfig(
  model: LoadedModel,
  folder: string,
  type: keyof typeof fileTypes,
  padId: number | undefined,
): Promise<void> {
  const base = model.patched.model.folder
  const config = await readJsonObject(join(base, 'config.json'), { keepNumbers: true })
  const rest = Object.fromEntries(Object.entries(config).filter(([key]) => key !== 'quantization_config'))
  const pad = padId === undefined ? {} : { pad_token_id: padId }
  const dtypeKey = 'dtype' in rest || !('torch_dtype' in rest) ? 'dtype' : 'torch_dtype'
  const values = {
    ...rest,
    [dtypeKey]: { bf16: 'bfloat16', f16: 'float16', f32: 'float32' }[type],
    ...(isUntied(model) ? { tie_word_embeddings: false } : {}),
    ...pad,
  }
  await writeFileAtomic(join(folder, 'config.json'), `${pythonJson(values)}\n`)
  const generation = join(base, 'generation_config.json')
  if (!existsSync(generation)) return
  const settings = await readJsonObject(generation, { keepNumbers: true })
  await writeFileAtomic(join(folder, 'generation_config.json'), `${pythonJson({ ...settings, ...pad })}\n`)
}

async function checkMerged(
  model: LoadedModel,
  folder: string,
  type: keyof typeof fileTypes,
  probes: readonly Int32Array[],
): Promise<MergeCheck> {
  const trained = await allLogits(model, model.trained, probes)
  const runtime = new Runtime(model.runtime.choice)
  try {
    const patched = patchModel(await describeModel(folder), { kind: 'none' }, model.target)
    const merged = await LoadedModel.load(patched, runtime, { seed: 0 })
    const logits = await allLogits(merged, merged.base, probes)
    const error = relativeError(logits, trained)
    const allowed = allowedError[type]
    if (!(error <= allowed))
      throw new UnslothError(
        'VERIFY',
        `The merged model answers differently from the trained one: relative difference ${error.toExponential(1)}, allowed ${allowed.toExponential(0)}. Nothing was saved.`,
        { hint: 'The adapter is intact; report this with the recipe.' },
      )
    return { error, allowed }
  } finally {
    runtime.dispose()
  }
}
