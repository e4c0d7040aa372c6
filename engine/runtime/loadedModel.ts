import { UnslothError } from '#shared/errors.ts'
import { dtypeCode, type DType } from '../graph/dtype.ts'
import type { LoraGroup, PrecisionCode, Weight } from '../graph/ops/linear.ts'
import { readModelFolder } from '../io/modelFolder.ts'
import { openTensorSource, type TensorSource } from '../io/tensorSource.ts'
import type { ArchSpec } from '../model/archSpec.ts'
import type { HfConfig } from '../model/config.ts'
import type { DecoderWeights } from '../model/decoder.ts'
import { archSpec } from '../model/registry.ts'
import { weightTable, type WeightEntry } from '../model/weightTable.ts'
import { loraModules, patchReport, type LoraModule, type LoraOptions, type PatchReport } from '../patch/lora.ts'
import { parameterLayout, type ParameterLayout } from '../patch/parameters.ts'
import type { Runtime } from './runtime.ts'
import { layoutWeights, loadInto, parameterParts, type WeightArena } from './weightArena.ts'

/** A model folder's description, before any weight is read. */
export interface ModelDescription {
  readonly folder: string
  readonly config: HfConfig
  readonly spec: ArchSpec
  readonly entries: readonly WeightEntry[]
  readonly source: TensorSource
}

export async function describeModel(folder: string): Promise<ModelDescription> {
  const { config } = await readModelFolder(folder, 'model')
  const spec = archSpec(config!.values, config!.where)
  return { folder, config: config!.values, spec, entries: weightTable(spec), source: await openTensorSource(folder) }
}

/** What is trained. */
export type Training = { readonly kind: 'none' } | { readonly kind: 'full' } | ({ readonly kind: 'lora'; readonly modulesToSave: readonly string[] } & LoraOptions)

/** The patched model as a description: complete before memory is taken, so that a dry run can report on it. */
export interface PatchedModel {
  readonly model: ModelDescription
  readonly training: Training
  readonly arena: WeightArena
  readonly modules: readonly LoraModule[]
  readonly layout: ParameterLayout
  readonly report: PatchReport | undefined
  /** Entries that are trained whole. */
  readonly full: readonly WeightEntry[]
}

const saveable: Readonly<Record<string, 'embedding' | 'head'>> = { embed_tokens: 'embedding', lm_head: 'head' }

/** `modules_to_save` as weight entries; a tied head that is trained apart becomes an own copy, as in PEFT. */
function savedEntries(model: ModelDescription, names: readonly string[]): WeightEntry[] {
  return names.map((name) => {
    const id = saveable[name]
    if (id === undefined)
      throw new UnslothError('RECIPE', `lora.modules_to_save: ${name} cannot be trained whole.`, { hint: `Supported: ${Object.keys(saveable).join(', ')}.` })
    const entry = model.entries.find((candidate) => candidate.id === id)
    if (entry !== undefined) return entry
    const embedding = model.entries.find((candidate) => candidate.id === 'embedding')!
    const [piece] = embedding.pieces
    return { ...embedding, id: 'head', kind: 'head', pieces: [{ ...piece!, name: `${model.spec.names.head}.weight`, from: piece!.name }] }
  })
}

/** Decides what is frozen, what is trained and where everything stands. `weightType` forces the type of frozen weights. */
export function patchModel(model: ModelDescription, training: Training, options: { weightType?: DType; embeddingRate?: boolean } = {}): PatchedModel {
  const modules = training.kind === 'lora' ? loraModules(model.entries, training) : []
  const full = training.kind === 'full' ? model.entries : training.kind === 'lora' ? savedEntries(model, training.modulesToSave) : []
  const frozen = training.kind === 'full' ? [] : model.entries
  return {
    model, training, modules, full,
    arena: layoutWeights(frozen, model.source, options.weightType),
    layout: parameterLayout(full, modules, options.embeddingRate === true),
    report: training.kind === 'lora' ? patchReport(model.entries, modules, model.spec.layers) : undefined,
  }
}

/** A patched model on a device. */
export class LoadedModel {
  readonly patched: PatchedModel
  readonly runtime: Runtime
  readonly precision: PrecisionCode

  private constructor(patched: PatchedModel, runtime: Runtime, precision: PrecisionCode) {
    this.patched = patched
    this.runtime = runtime
    this.precision = precision
  }

  get spec(): ArchSpec {
    return this.patched.model.spec
  }

  /** Reads the weights and initialises adapters: A uniform in ±1/√in (kaiming, a = √5, as PEFT), B zero. */
  static async load(patched: PatchedModel, runtime: Runtime, options: { precision: PrecisionCode; seed: number; progress?: (done: number, total: number) => void }): Promise<LoadedModel> {
    const { arena, layout, full, modules, model } = patched
    runtime.reserve('weights', arena.bytes)
    await loadInto(runtime, 'weights', arena.parts, options.progress)
    if (layout.elements > 0) {
      runtime.reserve('params', layout.elements * 4)
      await loadInto(runtime, 'params', parameterParts(full, model.source, layout.parameters), options.progress)
      for (const [index, module] of modules.entries()) {
        const parameter = layout.parameters.find(({ name }) => name === `${module.module}.lora_A.weight`)!
        const bound = 1 / Math.sqrt(module.inputs)
        await runtime.fillUniform('params', parameter.offset * 4, parameter.rows * parameter.cols, dtypeCode('f32'), [-bound, bound], options.seed, index)
      }
    }
    return new LoadedModel(patched, runtime, options.precision)
  }

  /** Weights as they are trained: adapters on, trained copies in place of frozen ones. */
  get trained(): DecoderWeights {
    const { layout } = this.patched
    return { weight: (id) => this.find(id, layout.weights), lora: (id): LoraGroup | undefined => layout.lora.get(id) }
  }

  /** The base model: adapters off. */
  get base(): DecoderWeights {
    return { weight: (id) => this.find(id, new Map()), lora: () => undefined }
  }

  private find(id: string, trained: ReadonlyMap<string, Weight>): Weight {
    const { weights } = this.patched.arena
    const full = this.patched.training.kind === 'full' ? this.patched.layout.weights : trained
    const found = full.get(id) ?? weights.get(id)
    if (found !== undefined) return found
    // A tied head is the embedding: the trained one in a full fine-tune, the frozen one beside a trained copy.
    if (id === 'head') return weights.get('embedding') ?? full.get('embedding')!
    throw new UnslothError('INTERNAL', `there is no weight "${id}"`)
  }

  /** Current values of one trained matrix. */
  readParameter(name: string): Float32Array<ArrayBuffer> {
    const { offset, rows, cols } = this.parameter(name)
    return this.runtime.readFloats('params', offset * 4, rows * cols)
  }

  writeParameter(name: string, values: Float32Array): void {
    const { offset, rows, cols } = this.parameter(name)
    if (values.length !== rows * cols) throw new UnslothError('MODEL_INVALID', `${name} has ${values.length} numbers, but ${rows}x${cols} are needed.`)
    this.runtime.write('params', offset * 4, values)
  }

  readGradient(name: string): Float32Array<ArrayBuffer> {
    const { offset, rows, cols } = this.parameter(name)
    return this.runtime.readFloats('grads', offset * 4, rows * cols)
  }

  private parameter(name: string) {
    const parameter = this.patched.layout.parameters.find((candidate) => candidate.name === name)
    if (parameter === undefined) throw new UnslothError('MODEL_INVALID', `${name} is not trained here.`)
    return parameter
  }
}
