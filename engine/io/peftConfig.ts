import { UnslothError } from '#shared/errors.ts'
import { Config, type HfConfig } from '../model/config.ts'
import type { ConfigFile } from './modelFolder.ts'
import { quote } from './printable.ts'
import { PyFloat, pythonJson } from './pythonJson.ts'

/** What a LoRA adapter's adapter_config.json says, as far as it bears on the result. */
export interface LoraConfig {
  readonly baseModel: string | null
  readonly revision: string | null
  readonly taskType: string | null
  readonly r: number
  readonly alpha: number
  readonly dropout: number
  /** Module names; a text is a regular expression or `all-linear`. */
  readonly targetModules: readonly string[] | string
  /** Modules left out though they are targets; a text is a regular expression. Written, not read: a file says which modules it has. */
  readonly excludeModules?: readonly string[] | string
  /** The layers that targets mean, and what stands before their number. Written, not read. */
  readonly layersToTransform?: readonly number[]
  readonly layersPattern?: readonly string[]
  /** Stacked parameters with LoRA of their own (experts). */
  readonly targetParameters: readonly string[]
  /** Modules trained and stored whole. */
  readonly modulesToSave: readonly string[]
  /** Scale α/√r instead of α/r. */
  readonly rslora: boolean
  /** Rows of the adapted weights have trained lengths (DoRA). */
  readonly dora: boolean
  /** Exceptions to `r` and `alpha`: regular expression on the end of a module's path → value. */
  readonly rankPattern: Readonly<Record<string, number>>
  readonly alphaPattern: Readonly<Record<string, number>>
  readonly initLoraWeights: boolean | string
  /** Biases of the base model that are trained and stored, too. */
  readonly bias: 'none' | 'all' | 'lora_only'
}

/**
 * All keys that PEFT 0.21 writes, with the values of a plain LoRA. `peft_version` names the version whose key set and tensor
 * names the files follow, which is what readers use it for.
 */
const plainConfig: HfConfig = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  arrow_config: null,
  auto_mapping: null,
  base_model_name_or_path: null,
  bias: 'none',
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  kasa_config: null,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 8,
  lora_bias: false,
  lora_dropout: new PyFloat(0),
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  modules_to_save: null,
  monteclora_config: null,
  peft_type: 'LORA',
  peft_version: '0.21.0',
  qalora_group_size: 16,
  r: 8,
  rank_pattern: {},
  revision: null,
  target_modules: null,
  target_parameters: null,
  task_type: 'CAUSAL_LM',
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
  velora_config: null,
}

/** Keys of other PEFT versions that change nothing once the adapter is trained. */
const harmless = new Set(['runtime_config', 'enable_lora', 'merge_weights', '_custom_modules'])

/** Features that change what the adapter computes, which this engine does not do: key → why. */
const refused: Readonly<Record<string, string>> = {
  lora_bias: 'the adapter has a bias in lora_B',
  alora_invocation_tokens: 'activated LoRA (aLoRA) is on only after an invocation sequence',
  layer_replication: 'the adapter repeats layers of the base model',
  trainable_token_indices: 'the adapter trains single rows of the embedding',
  use_qalora: 'QA-LoRA pools the inputs of lora_A',
  use_bdlora: 'the adapter is block-diagonal',
  arrow_config: 'Arrow routes between several adapters',
  kasa_config: 'KaSA changes the base weights',
  velora_config: 'VeLoRA changes the adapter',
  monteclora_config: 'MonteCLoRA samples its weights',
  megatron_config: 'the adapter is for Megatron layers',
}

/** Initialisations after which the base weights are no longer those of the base model. */
const changesBase = /^(pissa|olora|corda|loftq|lora_ga)/

const isOff = (value: unknown): boolean =>
  value === undefined || value === null || value === false || (typeof value === 'object' && Object.keys(value).length === 0)

function unsupported(where: string, what: string): UnslothError {
  return new UnslothError('MODEL_UNSUPPORTED', `${where}: ${what}, which is not supported.`, {
    hint: 'Merge the adapter into its base model with PEFT, and use the merged model.',
  })
}

function readPattern(config: Config, key: string): Record<string, number> {
  const section = config.section(key)
  if (section === undefined) return {}
  return Object.fromEntries(Object.keys(section.values).map((pattern) => [pattern, section.number(0, pattern)]))
}

const isBias = (value: string): value is LoraConfig['bias'] => value === 'none' || value === 'all' || value === 'lora_only'

function refuseFeatures({ values, where }: ConfigFile, config: Config, changedBase: boolean): void {
  const type = config.string('peft_type') ?? 'LORA'
  if (type.toUpperCase() !== 'LORA') throw unsupported(where, `the adapter is of type ${quote(type)}, not LORA`)
  for (const [key, why] of Object.entries(refused)) if (!isOff(values[key])) throw unsupported(where, `"${key}" is set: ${why}`)
  const bias = config.string('bias') ?? 'none'
  if (!isBias(bias)) throw unsupported(where, `"bias" is ${quote(bias)}`)
  const init = values.init_lora_weights
  if (!changedBase && typeof init === 'string' && changesBase.test(init))
    throw unsupported(where, `"init_lora_weights" is ${quote(init)}: this initialisation changes the base weights`)
  for (const key of Object.keys(values))
    if (!Object.hasOwn(plainConfig, key) && key.startsWith('use_') && !isOff(values[key]))
      throw unsupported(where, `${quote(key)} is set, a feature of a newer PEFT`)
}

/**
 * Reads an adapter_config.json; features that would compute something else are refused with the reason. `changedBase`: the base
 * weights are those that the adapter's initialisation left.
 */
export function readLoraConfig(
  file: ConfigFile,
  changedBase = false,
): { readonly lora: LoraConfig; readonly warnings: readonly string[] } {
  const { values, where } = file
  const config = new Config(values, where)
  refuseFeatures(file, config, changedBase)
  const alpha = config.optionalNumber('lora_alpha')
  if (alpha === undefined)
    throw new UnslothError('MODEL_INVALID', `${where}: "lora_alpha" is missing.`, { hint: 'Fetch or save the adapter again.' })
  const targets = values.target_modules
  const init = values.init_lora_weights
  const lora: LoraConfig = {
    baseModel: config.string('base_model_name_or_path') ?? null,
    revision: config.string('revision') ?? null,
    taskType: config.string('task_type') ?? null,
    r: config.size('r'),
    alpha,
    dropout: config.number(0, 'lora_dropout'),
    targetModules: typeof targets === 'string' ? targets : (config.strings('target_modules') ?? []),
    targetParameters: config.strings('target_parameters') ?? [],
    modulesToSave: config.strings('modules_to_save') ?? [],
    rslora: config.boolean(false, 'use_rslora'),
    dora: config.boolean(false, 'use_dora'),
    rankPattern: readPattern(config, 'rank_pattern'),
    alphaPattern: readPattern(config, 'alpha_pattern'),
    initLoraWeights: typeof init === 'string' || typeof init === 'boolean' ? init : true,
    bias: (config.string('bias') ?? 'none') as LoraConfig['bias'],
  }
  const warnings = Object.keys(values)
    .filter((key) => !Object.hasOwn(plainConfig, key) && !harmless.has(key) && !isOff(values[key]))
    .map((key) => `${where}: the key ${quote(key)} is not known and has no effect.`)
  return { lora, warnings }
}

/** The first pattern that matches the whole module path, or its end after a dot, as PEFT looks them up. */
function lookUp(patterns: Readonly<Record<string, number>>, module: string, fallback: number, where: string): number {
  for (const [pattern, value] of Object.entries(patterns)) {
    let expression: RegExp
    try {
      expression = new RegExp(`^(?:.*\\.)?(?:${pattern})$`)
    } catch (cause) {
      throw new UnslothError('MODEL_INVALID', `${where}: ${quote(pattern)} is not a regular expression.`, {
        hint: 'Correct rank_pattern or alpha_pattern.',
        cause,
      })
    }
    if (expression.test(module)) return value
  }
  return fallback
}

/** Rank and scale of one module: y = Wx + scale·B(Ax). */
export function loraScaling(
  config: LoraConfig,
  module: string,
  where = 'adapter_config.json',
): { readonly r: number; readonly alpha: number; readonly scale: number } {
  const r = lookUp(config.rankPattern, module, config.r, where)
  const alpha = lookUp(config.alphaPattern, module, config.alpha, where)
  return { r, alpha, scale: config.rslora ? alpha / Math.sqrt(r) : alpha / r }
}

/** The text of adapter_config.json, as PEFT writes it (sorted keys, indent 2, no newline at the end). */
export function loraConfigJson(config: LoraConfig): string {
  return pythonJson({
    ...plainConfig,
    base_model_name_or_path: config.baseModel,
    revision: config.revision,
    task_type: config.taskType,
    r: config.r,
    lora_alpha: config.alpha,
    lora_dropout: new PyFloat(config.dropout),
    target_modules: config.targetModules,
    exclude_modules: config.excludeModules ?? null,
    layers_to_transform: config.layersToTransform ?? null,
    layers_pattern: config.layersPattern ?? null,
    target_parameters: config.targetParameters.length > 0 ? config.targetParameters : null,
    modules_to_save: config.modulesToSave.length > 0 ? config.modulesToSave : null,
    use_rslora: config.rslora,
    use_dora: config.dora,
    rank_pattern: config.rankPattern,
    alpha_pattern: config.alphaPattern,
    init_lora_weights: config.initLoraWeights,
    bias: config.bias,
  })
}
