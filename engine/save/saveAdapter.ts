import type { Tokenizer } from '../data/tokenizer.ts'
import { snapshotOrigin } from '../hub/repository.ts'
import { writeFolderAtomic } from '../io/atomicFile.ts'
import type { FileSystem } from '../io/fileSystem.ts'
import { writePeftAdapter, type AdapterTensor } from '../io/peftAdapter.ts'
import type { LoraConfig } from '../io/peftConfig.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { copyTokenizer, writeTokenizer } from './writeTokenizer.ts'

/** Little-endian bytes of fp32 values. */
export const floatBytes = (values: Float32Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength)

/**
 * How PEFT describes what is trained here. `forBase`: as an adapter for the model's own files. One that started from principal parts
 * of the weights (pissa) has these taken off then: B·A − B₀·A₀ is an adapter of twice the rank (arXiv 2404.02948, appendix C).
 */
export function adapterConfig(model: LoadedModel, forBase = false): LoraConfig {
  const config = plainAdapterConfig(model)
  if (model.starts.size === 0) return config
  if (!forBase) return { ...config, initLoraWeights: 'pissa' }
  const twice = (values: Readonly<Record<string, number>>, factor: number) =>
    Object.fromEntries(Object.entries(values).map(([pattern, value]) => [pattern, value * factor]))
  const growth = config.rslora ? Math.SQRT2 : 2
  return {
    ...config,
    r: 2 * config.r,
    alpha: growth * config.alpha,
    rankPattern: twice(config.rankPattern, 2),
    alphaPattern: twice(config.alphaPattern, growth),
  }
}

function plainAdapterConfig(model: LoadedModel): LoraConfig {
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
  const special = [
    ...new Map(
      stacks.filter(({ rank }) => rank !== training.r).map((module) => [`.*\\.${lastName(module.parameter!)}`, module]),
    ).entries(),
  ]
  const { targets, exclude, layers, layersPattern } = training
  // PEFT takes a regular expression or layers, not both.
  const byPath = targets !== 'all-linear' && 'pattern' in targets && layers !== undefined
  const ranks = linear.map(({ module, rank }) => [module, rank] as const)
  const alphas = linear.map(
    ({ module, rank, scale }) => [module, Number((scale * (training.rslora ? Math.sqrt(rank) : rank)).toPrecision(12))] as const,
  )
  return {
    baseModel: origin?.id ?? folder,
    revision: origin?.revision ?? null,
    taskType: 'CAUSAL_LM',
    r: training.r,
    alpha: training.alpha,
    dropout: training.dropout,
    // Targets that mean experts only stand in targetParameters.
    targetModules:
      targets === 'all-linear'
        ? [...named]
        : byPath
          ? linear.map(({ module }) => module)
          : 'pattern' in targets
            ? targets.pattern
            : targets.filter((target) => named.has(lastName(target))),
    ...(exclude === undefined ? {} : { excludeModules: 'pattern' in exclude ? exclude.pattern : exclude }),
    ...(layers === undefined || byPath
      ? {}
      : { layersToTransform: layers, ...(layersPattern === undefined ? {} : { layersPattern }) }),
    targetParameters: [...new Set(stacks.map(({ parameter }) => parameter!.split('.').slice(-3).join('.')))],
    modulesToSave: training.modulesToSave,
    rslora: training.rslora,
    dora: training.dora === true,
    bias: training.bias ?? 'none',
    rankPattern: {
      ...settled(training.rankPattern, ranks, training.r),
      ...Object.fromEntries(special.map(([pattern, { rank }]) => [pattern, rank])),
    },
    alphaPattern: {
      ...settled(training.alphaPattern, alphas, training.alpha),
      ...Object.fromEntries(
        special.map(([pattern, { rank, scale }]) => [pattern, scale * (training.rslora ? Math.sqrt(rank) : rank)]),
      ),
    },
    // Neither pissa nor loftq leaves anything behind that a reader would have to repeat.
    initLoraWeights: typeof training.init === 'string' && training.init !== 'gaussian' ? true : (training.init ?? true),
  }
}

/**
 * Patterns that give the same values in the order in which a reader of the file meets them: PEFT sorts them, and takes the first that
 * matches. Where that would change a value, modules are named one by one.
 */
function settled(
  patterns: Readonly<Record<string, number>> = {},
  values: readonly (readonly [string, number])[],
  otherwise: number,
): Readonly<Record<string, number>> {
  const sorted = Object.entries(patterns)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([pattern, value]) => [new RegExp(`^(?:.*\\.)?(?:${pattern})$`), value] as const)
  const same = values.every(([module, value]) => (sorted.find(([pattern]) => pattern.test(module))?.[1] ?? otherwise) === value)
  return same ? patterns : Object.fromEntries(values.filter(([, value]) => value !== otherwise))
}

/** Every trained matrix under PEFT's names, in fp32. */
function adapterTensors(model: LoadedModel, forBase: boolean): AdapterTensor[] {
  const adapted = new Set(model.patched.modules.map(({ module }) => module))
  return model.patched.layout.parameters.map(({ name, shape }) => {
    // PEFT has the bias of a wrapped layer below it.
    const owner = /^(.*)\.bias$/.exec(name)?.[1]
    if (owner !== undefined)
      return {
        module: adapted.has(owner) ? `${owner}.base_layer` : owner,
        part: 'bias',
        dtype: 'F32',
        shape,
        data: () => floatBytes(model.readParameter(name)),
      }
    const lora = /^(.*)\.(lora_[AB])\.weight$/.exec(name) ?? /^(.*)\.(lora_magnitude_vector)$/.exec(name)
    const [module, part] =
      lora === null
        ? [name.replace(/\.weight$/, ''), 'weight' as const]
        : [lora[1]!, lora[2] as 'lora_A' | 'lora_B' | 'lora_magnitude_vector']
    const start = forBase ? model.starts.get(module) : undefined
    if (start !== undefined && (part === 'lora_A' || part === 'lora_B')) {
      const [rows, cols] = shape as [number, number]
      const grown = part === 'lora_A' ? [2 * rows, cols] : [rows, 2 * cols]
      return {
        module,
        part,
        dtype: 'F32',
        shape: grown,
        data: () =>
          floatBytes(
            part === 'lora_A' ? below(model.readParameter(name), start.a) : beside(model.readParameter(name), start.b, rows),
          ),
      }
    }
    return { module, part, dtype: 'F32', shape, data: () => floatBytes(model.readParameter(name)) }
  })
}

function below(upper: Float32Array, lower: Float32Array): Float32Array {
  const both = new Float32Array(upper.length + lower.length)
  both.set(upper)
  both.set(lower, upper.length)
  return both
}

/** [left, −right] of two matrices with so many rows. */
function beside(left: Float32Array, right: Float32Array, rows: number): Float32Array {
  const cols = left.length / rows
  return Float32Array.from({ length: 2 * left.length }, (_, i) => {
    const [row, col] = [Math.floor(i / (2 * cols)), i % (2 * cols)]
    return col < cols ? left[row * cols + col]! : -right[row * cols + col - cols]!
  })
}

/** The adapter's two files into an existing folder; PEFT loads them unchanged. `forBase`: see adapterConfig. */
export async function writeAdapterFiles(model: LoadedModel, folder: string, fs?: FileSystem, forBase = false): Promise<void> {
  await writePeftAdapter(folder, adapterConfig(model, forBase), adapterTensors(model, forBase), fs === undefined ? {} : { fs })
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
      await writeAdapterFiles(model, draft, fs, true)
      if (tokenizer === undefined) await copyTokenizer(model.patched.model.folder, draft)
      else await writeTokenizer(tokenizer, draft)
    },
    fs === undefined ? {} : { fs },
  )
}
