import type { PeftAdapter } from '../io/peftAdapter.ts'
import type { ModuleChoice } from './targets.ts'
import type { LoraInit, Training } from '../runtime/patchedModel.ts'

/** What `get_peft_model` takes, with its defaults. */
export interface PeftOptions {
  readonly r?: number
  readonly targetModules?: ModuleChoice | 'all-linear'
  /** Modules that get no adapter though they are targets. */
  readonly excludeModules?: ModuleChoice
  /** Stacked experts, by the end of their name; when absent they follow `targetModules`. */
  readonly targetParameters?: readonly string[]
  readonly loraAlpha?: number
  readonly loraDropout?: number
  readonly useRslora?: boolean
  readonly useDora?: boolean
  readonly initLoraWeights?: LoraInit
  readonly bias?: 'none' | 'all' | 'lora_only'
  readonly modulesToSave?: readonly string[]
  readonly layersToTransform?: readonly number[]
  readonly layersPattern?: readonly string[]
  /** Other ranks and alphas by regular expression, as in PEFT. */
  readonly rankPattern?: Readonly<Record<string, number>>
  readonly alphaPattern?: Readonly<Record<string, number>>
  /** `embed_tokens` and `lm_head` get a learning rate of their own. */
  readonly embeddingLearningRate?: boolean
  /** The B matrices get a learning rate of their own (LoRA+). */
  readonly loraPlus?: boolean
}

const defaultTargets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']

/** The options as what a model is patched by. */
export function loraTraining(options: PeftOptions): Training {
  return {
    kind: 'lora',
    r: options.r ?? 16,
    alpha: options.loraAlpha ?? 16,
    dropout: options.loraDropout ?? 0,
    targets: options.targetModules ?? defaultTargets,
    rslora: options.useRslora ?? false,
    dora: options.useDora ?? false,
    bias: options.bias ?? 'none',
    init: options.initLoraWeights ?? true,
    modulesToSave: options.modulesToSave ?? [],
    rankPattern: options.rankPattern ?? {},
    alphaPattern: options.alphaPattern ?? {},
    ...(options.layersToTransform === undefined ? {} : { layers: options.layersToTransform }),
    ...(options.excludeModules === undefined ? {} : { exclude: options.excludeModules }),
    ...(options.layersPattern === undefined ? {} : { layersPattern: options.layersPattern }),
    ...(options.targetParameters === undefined ? {} : { targetParameters: options.targetParameters }),
  }
}

/**
 * The options that put a saved adapter's matrices on its base model: the modules that the file has, however they were chosen
 * (regular expressions, layers, exceptions), with nothing dropped.
 */
export function optionsOfAdapter({ config, modules }: Pick<PeftAdapter, 'config' | 'modules'>): PeftOptions {
  // PEFT names a parameter with its owner (`mlp.experts.down_proj`) or alone.
  const owners = [
    'experts',
    ...config.targetParameters
      .filter((parameter) => parameter.includes('.'))
      .map((parameter) => parameter.slice(0, parameter.lastIndexOf('.'))),
  ]
  const isStack = (module: string): boolean =>
    owners.some((owner) => `.${module.replace(/(?:\.base_layer)+$/, '')}`.endsWith(`.${owner}`))
  return {
    r: config.r,
    loraAlpha: config.alpha,
    useRslora: config.rslora,
    useDora: config.dora,
    bias: config.bias,
    modulesToSave: config.modulesToSave,
    targetModules: [...modules.keys()].filter((module) => !isStack(module)),
    targetParameters: config.targetParameters,
    rankPattern: config.rankPattern,
    alphaPattern: config.alphaPattern,
  }
}
