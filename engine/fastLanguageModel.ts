import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { checkVocabulary, loadTokenizer, type Tokenizer, type TokenizerOptions } from './data/tokenizer.ts'
import { TextGenerator } from './generate/textGenerator.ts'
import type { Compute, Target } from './graph/target.ts'
import type { HubProgress } from './hub/transferProgress.ts'
import { openPeftAdapter } from './io/peftAdapter.ts'
import { extendContext } from './model/extendContext.ts'
import { loraTraining, optionsOfAdapter, type PeftOptions } from './patch/peftOptions.ts'
import { formatPatchReport } from './patch/lora.ts'
import { chooseDevice, targetOf } from './runtime/chooseDevice.ts'
import { LoadedModel } from './runtime/loadedModel.ts'
import { describeModel, patchModel, type ModelDescription, type PatchedModel, type PatchOptions } from './runtime/patchedModel.ts'
import { int8, nf4 } from './runtime/quantisedWeights.ts'
import { resolveModel, type ResolvedModel } from './runtime/resolveModel.ts'
import { Runtime, type DeviceChoice } from './runtime/runtime.ts'
import type { HostWeight } from './runtime/weightArena.ts'
import { saveAdapter } from './save/saveAdapter.ts'
import { saveMerged4bit } from './save/save4bit.ts'
import { saveMerged, type MergeCheck, type MergeOptions } from './save/saveMerged.ts'
import { restoreParameters } from './train/checkpoint.ts'
import { Trainer, type TrainerOptions } from './train/trainer.ts'
import type { TrainingPlan } from './train/trainingPlan.ts'

export interface PretrainedOptions {
  /** Folder of a model or adapter, its name on the Hub, or the name of a bundled model. */
  readonly modelName: string
  /** Branch, tag or commit of a model of the Hub. */
  readonly revision?: string | null
  /** Not another repository of the Hub that has the same model. */
  readonly useExactModelName?: boolean
  /** Told while a model of the Hub is fetched. */
  readonly onDownload?: ((progress: HubProgress) => void) | undefined
  readonly signal?: AbortSignal | undefined
  /** Longest sample; beyond the model's context its positions are stretched, with a warning. */
  readonly maxSeqLength?: number
  /** Train all weights instead of adapters. */
  readonly fullFinetuning?: boolean
  /** Repair what is known to go wrong with tokenizers. Default: yes. */
  readonly fixTokenizer?: boolean
  /** The chat template in the place of the tokenizer's own, and the token that ends its turns. */
  readonly chatTemplate?: Pick<TokenizerOptions, 'chatTemplate' | 'stopToken'>
  /** Folder of an adapter whose tokenizer is taken, if it has one; default: the one that was named in the model's place. */
  readonly adapter?: string | undefined
  /** Keep the linear layers in 4 bits: those stored in more are quantised to NF4, maxima in 8 bits, while they are read. */
  readonly loadIn4bit?: boolean
  /** Frozen weights to keep in memory of the system beside a GPU. */
  readonly hostWeights?: readonly HostWeight[]
  /** The same in 8 bits: rows of int8 with their maxima, as LLM.int8 stores them. */
  readonly loadIn8bit?: boolean
  /** How frozen weights are kept; default: as they are stored. */
  readonly dtype?: 'auto' | 'bfloat16' | 'float16' | 'float32'
  /** Default: what suits the device. */
  readonly compute?: Compute | 'auto'
  /** Default: the processor. */
  readonly device?: DeviceChoice
  /** Of the processor; default: one for each physical core. */
  readonly threads?: number
  readonly randomState?: number
}

/** The tokenizer that an adapter was saved with, else the model's. */
async function tokenizerOf(folder: string, adapter: string | undefined, options: TokenizerOptions): Promise<Tokenizer> {
  const own = adapter !== undefined && existsSync(join(adapter, 'tokenizer.json'))
  return own ? loadTokenizer(adapter, { ...options, modelFolder: folder }) : loadTokenizer(folder, options)
}

const weightTypes = { bfloat16: 'bf16', float16: 'f16', float32: 'f32' } as const

/**
 * The engine as one object, named as users of the Python library know it: from_pretrained, get_peft_model, then train, generate,
 * save. Command line, runs and editor all go through it. Until `load` it is only a description: no weight is read.
 */
export class FastLanguageModel {
  readonly tokenizer: Tokenizer
  readonly device: DeviceChoice
  readonly target: Target
  /** Oddities found on the way, one sentence each. */
  readonly warnings: readonly string[]
  private readonly description: ModelDescription
  private readonly seed: number
  private readonly weightType: Pick<PatchOptions, 'weightType' | 'quantisation' | 'hostWeights'>
  /** Adapter that was named in the model's place: where training goes on from, and what generates. */
  readonly adapter: string | undefined
  /** Repository and commit of a model of the Hub. */
  readonly hub: ResolvedModel['hub']
  private patchedModel: PatchedModel
  private loaded: LoadedModel | undefined

  private constructor(
    description: ModelDescription,
    tokenizer: Tokenizer,
    adapter: string | undefined,
    hub: ResolvedModel['hub'],
    options: PretrainedOptions,
    warnings: readonly string[],
  ) {
    this.description = description
    this.tokenizer = tokenizer
    this.adapter = adapter
    this.hub = hub
    this.device = options.device ?? chooseDevice('cpu', options.threads)
    this.target = targetOf(this.device, options.compute ?? 'auto')
    this.seed = options.randomState ?? 3407
    this.warnings = warnings
    this.weightType = {
      ...(options.dtype === undefined || options.dtype === 'auto' ? {} : { weightType: weightTypes[options.dtype] }),
      ...(options.hostWeights === undefined ? {} : { hostWeights: options.hostWeights }),
      ...(options.loadIn4bit === true ? { quantisation: nf4 } : options.loadIn8bit === true ? { quantisation: int8 } : {}),
    }
    this.patchedModel = patchModel(
      description,
      { kind: options.fullFinetuning === true ? 'full' : 'none' },
      this.target,
      this.weightType,
    )
  }

  /** Reads and checks a model folder: config, tokenizer, tensor names and shapes. */
  static async fromPretrained(options: PretrainedOptions): Promise<FastLanguageModel> {
    const notices: string[] = []
    const { folder, adapter, hub } = await resolveModel(options.modelName, {
      revision: options.revision ?? null,
      exactName: options.useExactModelName === true,
      onProgress: options.onDownload,
      signal: options.signal,
      onNotice: (notice) => notices.push(notice),
    })
    if (options.fullFinetuning === true && adapter !== undefined)
      throw new UnslothError('RECIPE', `${options.modelName} is an adapter; full fine-tuning trains a whole model.`, {
        hint: 'Name the base model, or merge the adapter first.',
      })
    const described = await describeModel(folder)
    const { spec, warning } = extendContext(described.spec, options.maxSeqLength ?? described.spec.context)
    const tokenizer = await tokenizerOf(folder, options.adapter ?? adapter, {
      ...(options.fixTokenizer === false && { fix: false }),
      ...options.chatTemplate,
    })
    checkVocabulary(tokenizer, spec.vocabulary)
    const warnings = [...notices, ...(warning === undefined ? [] : [warning]), ...described.source.warnings]
    return new FastLanguageModel({ ...described, spec }, tokenizer, adapter, hub, options, warnings)
  }

  /** Puts LoRA on the chosen projections. To be called before `load`. */
  getPeftModel(options: PeftOptions = {}): this {
    if (this.loaded !== undefined) throw new UnslothError('INTERNAL', 'getPeftModel comes before load')
    if (this.patchedModel.training.kind === 'full')
      throw new UnslothError('RECIPE', 'A full fine-tune has no adapters.', { hint: 'Set training.training_type: lora.' })
    this.patchedModel = patchModel(this.description, loraTraining(options), this.target, {
      ...this.weightType,
      embeddingRate: options.embeddingLearningRate === true,
      loraPlus: options.loraPlus === true,
    })
    return this
  }

  /** What is frozen and what is trained, with every offset: enough to plan memory. */
  get patched(): PatchedModel {
    return this.patchedModel
  }

  /** "patched 32 layers: 32 fused QKV, 32 O, 32 MLP", and the reason for each group that is not fused. */
  get patchReport(): readonly string[] {
    const { report, training } = this.patchedModel
    return report !== undefined
      ? formatPatchReport(report)
      : training.kind === 'full'
        ? ['full fine-tuning: every weight is trained']
        : []
  }

  /** Reads the weights into a device's memory; `adapter` (default: the one that was named) starts the trained matrices. */
  async load(
    options: { adapter?: string | undefined; runtime?: Runtime; onProgress?: (done: number, total: number) => void } = {},
  ): Promise<LoadedModel> {
    const runtime = options.runtime ?? new Runtime(this.device)
    const progress = options.onProgress === undefined ? {} : { progress: options.onProgress }
    this.loaded = await LoadedModel.load(this.patchedModel, runtime, { seed: this.seed, ...progress })
    const adapter = options.adapter ?? (this.patchedModel.training.kind === 'lora' ? this.adapter : undefined)
    if (adapter !== undefined) await restoreParameters(this.loaded, adapter)
    return this.loaded
  }

  private get model(): LoadedModel {
    if (this.loaded === undefined) throw new UnslothError('INTERNAL', 'the model is not loaded')
    return this.loaded
  }

  /** Optimizer steps on this model, by a plan made for it. */
  trainer(plan: TrainingPlan, options: Omit<TrainerOptions, 'seed'>): Trainer {
    return new Trainer(this.model, plan, { ...options, seed: this.seed })
  }

  /**
   * A model ready to write text. `adapter` is put on it (default: the one that was named), so that base and tuned model share one
   * set of weights.
   */
  static async forInference(options: PretrainedOptions): Promise<TextGenerator> {
    const model = await FastLanguageModel.fromPretrained(options)
    const adapter = options.adapter ?? model.adapter
    if (adapter !== undefined) {
      model.getPeftModel(optionsOfAdapter(await openPeftAdapter(adapter)))
    }
    await model.load({ adapter })
    return model.generator()
  }

  /** Text generation with the trained and the base model alike. */
  generator(): TextGenerator {
    return new TextGenerator(this.model, this.tokenizer)
  }

  /** The adapter as PEFT reads it, with the tokenizer. */
  async savePretrained(folder: string): Promise<void> {
    await saveAdapter(this.model, folder, { tokenizer: this.tokenizer })
  }

  /** The whole model in 16 bits (or, made from that, in 4), adapters merged; refused when its logits are not those of the trained model. */
  async savePretrainedMerged(
    folder: string,
    options: MergeOptions,
    method: 'merged_16bit' | 'merged_4bit' = 'merged_16bit',
  ): Promise<MergeCheck> {
    return (method === 'merged_4bit' ? saveMerged4bit : saveMerged)(this.model, folder, { tokenizer: this.tokenizer, ...options })
  }

  dispose(): void {
    this.loaded?.runtime.dispose()
    this.loaded = undefined
  }
}
