import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { writeFileAtomic, writeFolderAtomic } from '../io/atomicFile.ts'
import { readJsonObject } from '../io/modelFolder.ts'
import { PyFloat, pythonJson } from '../io/pythonJson.ts'
import { writeTensors, type NamedTensor } from '../io/safetensorsWriter.ts'
import { ModelWriter } from '../io/tensorSink.ts'
import { isQuantised } from '../graph/dtype.ts'
import { pieceShape } from '../model/weightTable.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { describeModel, patchModel } from '../runtime/patchedModel.ts'
import { nf4 } from '../runtime/quantisedWeights.ts'
import { Runtime } from '../runtime/runtime.ts'
import { relativeError } from '../verify/relativeError.ts'
import { allLogits } from '../verify/passes.ts'
import { mergedTensor } from './merge.ts'
import { quantisedTensorBytes } from './quantise.ts'
import { saveMerged, storedType, type MergeCheck, type MergeOptions } from './saveMerged.ts'
import { copyTokenizer } from './writeTokenizer.ts'

const fileTypes = { bf16: 'BF16', f16: 'F16', f32: 'F32' } as const

/** What transformers writes for NF4 with maxima in 8 bits. */
const quantisationConfig = (compute: string, skipped: readonly string[]) => ({
  _load_in_4bit: true,
  _load_in_8bit: false,
  bnb_4bit_compute_dtype: compute,
  bnb_4bit_quant_storage: 'uint8',
  bnb_4bit_quant_type: 'nf4',
  bnb_4bit_use_double_quant: true,
  llm_int8_enable_fp32_cpu_offload: false,
  llm_int8_has_fp16_weight: false,
  llm_int8_skip_modules: skipped.length === 0 ? null : skipped,
  llm_int8_threshold: new PyFloat(6),
  load_in_4bit: true,
  load_in_8bit: false,
  quant_method: 'bitsandbytes',
})

/**
 * Writes the trained model merged and in 4 bits (NF4), as transformers with bitsandbytes stores and loads it. The way leads over the
 * merged model in 16 bits, which stands beside until this one is complete; it is checked as `saveMerged` does, and this one against
 * what it was quantised to, exactly.
 */
export async function saveMerged4bit(model: LoadedModel, folder: string, options: MergeOptions): Promise<MergeCheck> {
  const type = storedType(model)
  return writeFolderAtomic(
    folder,
    async (draft) => {
      const plain = join(draft, '16bit')
      await saveMerged(model, plain, options)
      const runtime = new Runtime(model.runtime.choice)
      try {
        const patched = patchModel(await describeModel(plain), { kind: 'none' }, model.target, { quantisation: nf4 })
        const quantised = await LoadedModel.load(patched, runtime, { seed: 0 })
        await writeWeights(quantised, draft, type, options)
        await writeConfig(quantised, plain, draft)
        await copyTokenizer(plain, draft)
        await rm(plain, { recursive: true })
        return await check(quantised, draft, options.probes)
      } finally {
        runtime.dispose()
      }
    },
    options.fs === undefined ? {} : { fs: options.fs },
  )
}

async function writeWeights(
  model: LoadedModel,
  folder: string,
  type: keyof typeof fileTypes,
  options: MergeOptions,
): Promise<void> {
  const tensors = model.patched.model.entries.flatMap((entry) =>
    entry.pieces.flatMap((piece): NamedTensor[] => {
      const packed = quantisedTensorBytes(model, entry, piece)
      if (packed.length === 0)
        return [
          {
            name: piece.name,
            dtype: fileTypes[type],
            shape: pieceShape(entry, piece),
            data: () => mergedTensor(model, entry, piece, type),
          },
        ]
      // Read again when it is written: all together would be a second model in memory.
      return packed.map(({ name, dtype, shape }, index) => ({
        name,
        dtype,
        shape,
        data: () => Promise.resolve(quantisedTensorBytes(model, entry, piece)[index]!.bytes),
      }))
    }),
  )
  const writer = await ModelWriter.open(folder, tensors, {
    maxShardSize: options.maxShardSize,
    ...(options.fs === undefined ? {} : { fs: options.fs }),
  })
  await writeTensors(writer, tensors)
}

/** Linear layers that could not be quantised are named, so that loaders leave them alone, too. */
async function writeConfig({ patched }: LoadedModel, from: string, folder: string): Promise<void> {
  const config = await readJsonObject(join(from, 'config.json'), { keepNumbers: true })
  const linear = patched.model.entries.filter(({ kind }) => kind === 'linear' || kind === 'experts')
  const left = linear.filter(({ id }) => !isQuantised(patched.arena.weights.get(id)!.value.storage.dtype))
  const skipped =
    left.length === 0 ? [] : [...left.flatMap(({ pieces }) => pieces.map(({ name }) => name.replace(/\.weight$/, ''))), 'lm_head']
  const dtype = (config.dtype ?? config.torch_dtype ?? 'bfloat16') as string
  await writeFileAtomic(
    join(folder, 'config.json'),
    `${pythonJson({ ...config, quantization_config: quantisationConfig(dtype, skipped) })}\n`,
  )
  const generation = await readJsonObject(join(from, 'generation_config.json'), { keepNumbers: true }).catch(() => undefined)
  if (generation !== undefined) await writeFileAtomic(join(folder, 'generation_config.json'), `${pythonJson(generation)}\n`)
}

async function check(quantised: LoadedModel, folder: string, probes: readonly Int32Array[]): Promise<MergeCheck> {
  const expected = await allLogits(quantised, quantised.base, probes)
  const runtime = new Runtime(quantised.runtime.choice)
  try {
    const saved = await LoadedModel.load(patchModel(await describeModel(folder), { kind: 'none' }, quantised.target), runtime, {
      seed: 0,
    })
    const error = relativeError(await allLogits(saved, saved.base, probes), expected)
    if (!(error === 0))
      throw new UnslothError(
        'VERIFY',
        `The model in 4 bits answers differently once it is read from its files: relative difference ${error.toExponential(1)}. Nothing was saved.`,
        { hint: 'Save it in 16 bits, and report this with the recipe.' },
      )
    return { error, allowed: 0 }
  } finally {
    runtime.dispose()
  }
}
