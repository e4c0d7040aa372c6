import type { Target } from '../graph/target.ts'
import { UnslothError } from '#shared/errors.ts'
import type { DType } from '../graph/dtype.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { readModelFolder } from '../io/modelFolder.ts'
import { quantisedTensors } from '../io/bitsandbytes.ts'
import { scaledTensors } from '../io/scaledTensors.ts'
import { openTensorSource } from '../io/tensorSource.ts'
import type { LoraGroup, Weight } from '../graph/ops/linear.ts'
import type { ArchSpec } from '../model/archSpec.ts'
import type { HfConfig } from '../model/config.ts'
import type { DecoderWeights } from '../model/decoder.ts'
import { archSpec } from '../model/registry.ts'
import { weightTable, type WeightEntry } from '../model/weightTable.ts'
import { loraModules, patchReport, trainedBiases, type LoraModule, type LoraOptions, type PatchReport } from '../patch/lora.ts'
import { parameterLayout, type ParameterLayout } from '../patch/parameters.ts'
import type { Quantisation } from './quantisedWeights.ts'
import { layoutWeights, type HostWeight, type WeightArena, type WeightSource } from './weightArena.ts'

/** A model folder's description, before any weight is read. */
export interface ModelDescription extends WeightSource {
  readonly folder: string
  readonly config: HfConfig
  readonly spec: ArchSpec
  readonly entries: readonly WeightEntry[]
}

/** How checkpoints may be quantised: bitsandbytes in 4 and 8 bits, and FP8 e4m3 with scales under the names that these writers use. */
const quantisers: ReadonlySet<unknown> = new Set(['bitsandbytes', 'fp8', 'fbgemm_fp8', 'compressed-tensors', 'modelopt'])

function requireKnownQuantiser({ quantization_config: asked }: HfConfig, where: string): void {
  const method = isJsonObject(asked) ? asked.quant_method : undefined
  if (method === undefined || method === null || quantisers.has(method)) return
  throw new UnslothError(
    'MODEL_UNSUPPORTED',
    `${where}: a checkpoint of quant_method ${JSON.stringify(method)} cannot be read.`,
    {
      hint: 'Name the 16-bit version of the model; training.load_in_4bit quantises it on the way in. bitsandbytes and FP8 (e4m3) can be read.',
    },
  )
}

export async function describeModel(folder: string): Promise<ModelDescription> {
  const { config } = await readModelFolder(folder, 'model')
  requireKnownQuantiser(config!.values, config!.where)
  const spec = archSpec(config!.values, config!.where)
  const source = await openTensorSource(folder)
  const entries = weightTable(spec, (name) => source.tensors.has(name))
  return {
    folder,
    config: config!.values,
    spec,
    entries,
    source,
    quantised: quantisedTensors(source),
    scaled: scaledTensors(source),
  }
}

/** How new adapters start, as PEFT's init_lora_weights; B is zero but with `false`. */
export type LoraInit = boolean | 'gaussian' | 'pissa' | 'loftq'

/** What is trained. */
export type Training =
  | { readonly kind: 'none' }
  | { readonly kind: 'full' }
  | ({ readonly kind: 'lora'; readonly modulesToSave: readonly string[]; readonly init?: LoraInit } & LoraOptions)

/** The patched model as a description: complete before memory is taken, so that a dry run can report on it. */
export interface PatchedModel {
  readonly target: Target
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
      throw new UnslothError('RECIPE', `lora.modules_to_save: ${name} cannot be trained whole.`, {
        hint: `Supported: ${Object.keys(saveable).join(', ')}.`,
      })
    return model.entries.find((candidate) => candidate.id === id) ?? untiedHead(model)
  })
}

/** The head of a tied model as a weight of its own, starting from the embedding. */
export function untiedHead({ entries, spec }: ModelDescription): WeightEntry {
  const embedding = entries.find(({ id }) => id === 'embedding')!
  const piece = embedding.pieces[0]!
  return {
    ...embedding,
    id: 'head',
    kind: 'head',
    pieces: [{ ...piece, name: `${spec.names.head}.weight`, from: piece.from ?? piece.name }],
  }
}

export interface PatchOptions {
  /** Type of frozen 16- and 32-bit weights, when it is not the target's. */
  readonly weightType?: DType
  readonly embeddingRate?: boolean
  /** LoRA+ (arXiv 2402.12354): B matrices have a learning rate of their own. */
  readonly loraPlus?: boolean
  /** Frozen weights that lie in memory of the system beside a GPU; a processor has no other. */
  readonly hostWeights?: readonly HostWeight[]
  /** Default: matrices that are stored in 4 or 8 bits stay so. */
  readonly quantisation?: Quantisation
}

/** Decides what is frozen, what is trained and where everything stands. */
export function patchModel(
  model: ModelDescription,
  training: Training,
  target: Target,
  options: PatchOptions = {},
): PatchedModel {
  if (training.kind === 'full' && (model.quantised.size > 0 || options.quantisation?.kind === 'load'))
    throw new UnslothError('RECIPE', 'training.training_type: quantised weights cannot be trained in full.', {
      hint:
        model.quantised.size > 0
          ? 'Name the 16-bit version of the model, or train an adapter (training_type: lora).'
          : 'Set load_in_4bit: false and load_in_8bit: false, or training_type: lora.',
    })
  const modules = training.kind === 'lora' ? loraModules(model.entries, training) : []
  const full =
    training.kind === 'full'
      ? model.entries
      : training.kind === 'lora'
        ? [...savedEntries(model, training.modulesToSave), ...trainedBiases(model.entries, modules, training.bias)]
        : []
  const frozen = training.kind === 'full' ? [] : model.entries
  return {
    target,
    model,
    training,
    modules,
    full,
    arena: layoutWeights(
      frozen,
      model,
      options.weightType ?? target.weights,
      options.quantisation ?? { kind: 'stored' },
      target.kind === 'cpu' ? [] : options.hostWeights,
    ),
    layout: parameterLayout(full, modules, options.embeddingRate === true, target.parameters, options.loraPlus === true),
    report: training.kind === 'lora' ? patchReport(model.entries, modules, model.spec.layers) : undefined,
  }
}

/** Weights as they are trained: adapters on, trained copies in place of frozen ones. */
export function trainedWeights({ layout, arena, training }: PatchedModel): DecoderWeights {
  const find = (id: string): Weight | undefined => layout.weights.get(id) ?? arena.weights.get(id)
  return {
    // A tied head is the embedding: the trained one in a full fine-tune, the frozen one beside a trained copy (as in PEFT).
    weight: (id) =>
      find(id) ??
      (id === 'head' ? (training.kind === 'full' ? layout : arena).weights.get('embedding') : undefined) ??
      missing(id),
    lora: (id) => layout.lora.get(id),
  }
}

/** The same for evaluation and generation: nothing is dropped. */
export function evaluatedWeights(patched: PatchedModel): DecoderWeights {
  const trained = trainedWeights(patched)
  const undropped = (group: LoraGroup): LoraGroup => ({
    ...group,
    parts: group.parts.map(({ column, width, rank, a, b, scale }) => ({ column, width, rank, a, b, scale })),
  })
  return {
    weight: (id) => trained.weight(id),
    lora: (id) => {
      const group = trained.lora(id)
      return group === undefined ? undefined : undropped(group)
    },
  }
}

/** The base model: adapters and trained copies off. After a full fine-tune there is no other model than the trained one. */
export function baseWeights(patched: PatchedModel): DecoderWeights {
  if (patched.training.kind === 'full') return trainedWeights(patched)
  const { weights } = patched.arena
  return {
    weight: (id) => weights.get(id) ?? (id === 'head' ? weights.get('embedding') : undefined) ?? missing(id),
    lora: () => undefined,
  }
}

function missing(id: string): never {
  throw new UnslothError('INTERNAL', `there is no weight "${id}"`)
}
