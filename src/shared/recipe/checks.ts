import { valueEntries } from './field.ts'
import { fieldAt, recipeFields } from './fields.ts'
import { asText, say, type RecipeIssue, type Said } from './issue.ts'
import { hasEvalSet } from './derived.ts'
import { isModuleName } from './loraSection.ts'
import type { Recipe, SectionName } from './schema.ts'

/** A problem found in a validated recipe, by canonical key. */
export type Finding = Omit<RecipeIssue, 'path' | 'flag' | 'at'> & {
  readonly key: string
  readonly at?: 'key' | 'value'
  /** Entry of a list. */
  readonly item?: number | undefined
}

/** What was written, as opposed to what was filled in. */
export interface Given {
  /** Whether `section.key` was given. */
  readonly key: (path: string) => boolean
  readonly section: (name: SectionName) => boolean
}

const everything: Given = { key: () => true, section: () => true }

function valueAt(recipe: Recipe, path: string): unknown {
  const [section, key] = path.split('.') as [SectionName, string]
  return (recipe[section] as Readonly<Record<string, unknown>>)[key]
}

/** Settings that are understood but not available yet, by canonical key. */
export function unsupportedFindings(recipe: Recipe): Finding[] {
  return recipeFields.flatMap(({ path, section, key, meta }) => {
    const value = valueAt(recipe, path)
    const unused = recipe.training.training_type === 'full' && section === 'lora'
    if (unused || meta.availability?.applies(value) !== true) return []
    const { severity, note } = meta.availability
    return [{ severity, code: 'unavailable' as const, key: path, ...say`${section}.${key}: ${asText(note)}` }]
  })
}

/** Rules between keys. */
export function checkRecipe(recipe: Recipe, given: Given = everything): Finding[] {
  const findings: Finding[] = []
  const error = (key: string, said: Said): void => {
    findings.push({ severity: 'error', code: 'conflict', key, ...said })
  }
  const warn = (key: string, said: Said): void => {
    findings.push({ severity: 'warning', code: 'ineffective', key, ...said, at: 'key' })
  }
  const { data, training, lora, save, hub } = recipe
  const full = training.training_type === 'full'

  if (training.num_epochs === 0 && training.max_steps === 0) {
    error(
      given.key('training.max_steps') && !given.key('training.num_epochs') ? 'training.max_steps' : 'training.num_epochs',
      say`training.num_epochs and training.max_steps are both 0: nothing would be trained; set one of them`,
    )
  }
  if (training.max_steps > 0 && training.warmup_steps > training.max_steps) {
    error(
      given.key('training.warmup_steps') ? 'training.warmup_steps' : 'training.max_steps',
      say`training.warmup_steps (${training.warmup_steps}) is more than training.max_steps (${training.max_steps}): the learning rate would never reach its peak`,
    )
  }
  if (training.lr_scheduler_type === 'constant' && given.key('training.warmup_steps') && training.warmup_steps > 0) {
    warn(
      'training.warmup_steps',
      say`training.warmup_steps has no effect with lr_scheduler_type: constant; constant_with_warmup is the same with a warm-up`,
    )
  }
  if (training.lr_scheduler_type === 'polynomial' && training.lr_end >= training.learning_rate) {
    error(
      'training.lr_end',
      say`training.lr_end (${training.lr_end}) must be less than training.learning_rate (${training.learning_rate})`,
    )
  }
  if (training.learning_rate > 0.05) {
    findings.push({
      severity: 'warning',
      code: 'range',
      key: 'training.learning_rate',
      ...say`training.learning_rate is ${training.learning_rate}; the typical range is 1e-6 to 1e-3`,
    })
  }
  if (training.load_in_4bit && training.load_in_8bit) {
    error('training.load_in_8bit', say`training.load_in_4bit and training.load_in_8bit exclude each other`)
  }
  if (full && (training.load_in_4bit || training.load_in_8bit)) {
    error(
      training.load_in_4bit ? 'training.load_in_4bit' : 'training.load_in_8bit',
      say`quantised weights cannot be trained: training_type: full needs ${training.load_in_4bit ? 'load_in_4bit' : 'load_in_8bit'}: false`,
    )
  }
  checkData(recipe, error)
  if (training.eval_steps > 0 && !hasEvalSet(recipe)) {
    warn('training.eval_steps', say`training.eval_steps has no effect without data.eval_dataset or data.eval_split`)
  }
  if (training.save_total_limit !== null && training.save_steps === 0 && given.key('training.save_total_limit')) {
    warn('training.save_total_limit', say`training.save_total_limit has no effect without training.save_steps`)
  }
  if (full) {
    if (lora.init_adapter !== null) {
      error('lora.init_adapter', say`lora.init_adapter: full fine-tuning on an adapter is not possible; use training_type: lora`)
    } else if (given.section('lora')) warn('lora', say`lora has no effect with training_type: full`)
    if (save.method.includes('lora')) {
      error('save.method', say`save.method lora needs an adapter, and training_type: full has none; use merged_16bit`)
    }
  } else {
    const init = lora.use_loftq ? 'loftq' : lora.init_lora_weights
    if (init === 'loftq' && !training.load_in_4bit) {
      error(
        lora.use_loftq ? 'lora.use_loftq' : 'lora.init_lora_weights',
        say`lora.init_lora_weights: loftq starts from the error of 4-bit quantisation; set training.load_in_4bit: true`,
      )
    }
    if (init === 'pissa' && (training.load_in_4bit || training.load_in_8bit)) {
      error(
        'lora.init_lora_weights',
        training.load_in_4bit
          ? say`lora.init_lora_weights: pissa changes the weights, which quantised ones do not allow; use loftq, or load_in_4bit: false`
          : say`lora.init_lora_weights: pissa changes the weights, which quantised ones do not allow; use load_in_8bit: false`,
      )
    }
    if (lora.layers_to_transform !== null && lora.finetune_last_n_layers !== null) {
      error('lora.finetune_last_n_layers', say`lora.layers_to_transform and lora.finetune_last_n_layers exclude each other`)
    }
    if (lora.target_modules.length === 0 && lora.modules_to_save.length === 0) {
      error('lora.target_modules', say`lora.target_modules names no layer`)
    }
    for (const key of ['target_modules', 'exclude_modules'] as const) {
      const patterns = lora[key].filter((name) => !isModuleName(name))
      if (patterns.length === 0) continue
      if (lora[key].length > 1)
        error(`lora.${key}`, say`lora.${key}: a regular expression (${patterns[0]!}) stands alone, not in a list`)
      else if (!isExpression(patterns[0]!)) error(`lora.${key}`, say`lora.${key}: ${patterns[0]!} is not a regular expression`)
    }
    const wrong = lora.layers_pattern.find((pattern) => !isExpression(pattern))
    if (wrong !== undefined) error('lora.layers_pattern', say`lora.layers_pattern: ${wrong} is not a regular expression`)
    if (lora.layers_pattern.length > 0 && lora.layers_to_transform === null) {
      error('lora.layers_pattern', say`lora.layers_pattern needs lora.layers_to_transform`)
    }
    if (lora.target_modules.length > 1 && lora.target_modules.includes('all-linear')) {
      error('lora.target_modules', say`lora.target_modules: all-linear stands for every linear layer; write it alone`)
    }
    if (training.embedding_learning_rate !== null && lora.modules_to_save.length === 0) {
      warn(
        'training.embedding_learning_rate',
        say`training.embedding_learning_rate has no effect unless embed_tokens or lm_head is in lora.modules_to_save`,
      )
    }
  }
  for (const key of ['offload_embedding', 'offload_lm_head'] as const) {
    if (!training[key]) continue
    if (full) warn(`training.${key}`, say`training.${key} has no effect with training_type: full, which trains this layer`)
    else if (training.device === 'cpu')
      warn(`training.${key}`, say`training.${key} has no effect on the processor, whose memory is the host's`)
  }
  if (hub.push && hub.repo_id === null) error('hub.push', say`hub.push needs hub.repo_id, such as me/my-model`)
  if (data.stride >= data.chunk_size) {
    error('data.stride', say`data.stride (${data.stride}) must be less than data.chunk_size (${data.chunk_size})`)
  }
  return findings
}

function isExpression(text: string): boolean {
  try {
    return new RegExp(text) instanceof RegExp
  } catch {
    return false
  }
}

function checkData({ data, training }: Recipe, error: (key: string, said: Said) => void): void {
  const weights = data.mix_weights.length
  if (data.dataset !== null && data.local_dataset.length > 0 && weights === 0) {
    error(
      'data.local_dataset',
      say`data.dataset and data.local_dataset are both given; keep one, or mix them by data.mix_weights`,
    )
  }
  const sources = data.local_dataset.length + (data.dataset === null ? 0 : 1)
  if (weights > 0 && weights !== sources) {
    error(
      'data.mix_weights',
      weights === 1
        ? say`data.mix_weights has 1 weight for ${sources} sources; give one for each`
        : say`data.mix_weights has ${weights} weights for ${sources} sources; give one for each`,
    )
  }
  if (data.streaming && training.max_steps === 0) {
    error('data.streaming', say`data.streaming needs training.max_steps: without it, all of the data is trained`)
  }
  if (data.streaming && weights > 0)
    error('data.streaming', say`data.streaming and data.mix_weights exclude each other: a mixture is made of all rows`)
  if (data.dataset === null && data.local_dataset.length === 0) {
    error('data', say`data.dataset or data.local_dataset is missing: say what to train on`)
  }
  if (data.dataset !== null && /(?:^|\/)\.\.\//.test(data.dataset) && !/^\.{1,2}\//.test(data.dataset)) {
    error('data.dataset', say`data.dataset: ${JSON.stringify(data.dataset)} is neither a path nor a Hub id`)
  }
  if ((data.instruction_part === null) !== (data.response_part === null)) {
    error(
      data.instruction_part === null ? 'data.response_part' : 'data.instruction_part',
      say`data.instruction_part and data.response_part belong together: give both or none`,
    )
  }
  if (data.eval_dataset.length > 0 && data.eval_split !== null) {
    error('data.eval_split', say`data.eval_dataset and data.eval_split are both given; keep one`)
  }
}

/** Settings of a recipe that are understood but not available yet. */
export function unsupportedSettings(recipe: Recipe): RecipeIssue[] {
  return unsupportedFindings(recipe).map(({ key, ...finding }) => ({ ...finding, at: 'value', path: key.split('.') }))
}

interface Limits {
  readonly min?: number
  readonly max?: number
  readonly above?: number
  readonly below?: number
}

function saidRange({ min, max, above, below }: Limits): Said | undefined {
  if (min !== undefined && max !== undefined) return say`from ${min} to ${max}`
  const low = min !== undefined ? say`at least ${min}` : above !== undefined ? say`above ${above}` : undefined
  const high = max !== undefined ? say`at most ${max}` : below !== undefined ? say`below ${below}` : undefined
  return low !== undefined && high !== undefined ? say`${low} and ${high}` : (low ?? high)
}

/** The range of a field in words, such as `from 1 to 4096`; empty when there is none. */
export const rangeText = (limits: Limits): string => saidRange(limits)?.message ?? ''

/** What a field wants, completing "must be …". */
export function expectation(path: string): Said {
  const meta = fieldAt(path)?.meta
  if (meta === undefined) return say`something else`
  const range = saidRange(meta)
  switch (meta.kind) {
    case 'boolean':
      return say`true or false`
    case 'integer':
      return range === undefined ? say`a whole number` : say`a whole number ${range}`
    case 'number':
      if (path === 'training.max_memory') return say`a size such as 20GiB or 20000MB, or a number of GiB`
      if (path === 'data.eval_split') return say`a share below 1, a number of rows or the name of a split`
      return range === undefined ? say`a number` : say`a number ${range}`
    case 'choice':
      return say`one of ${valueEntries(meta)
        .map(([name]) => name)
        .join(', ')}`
    case 'list':
      return path === 'lora.layers_to_transform' ? say`a list of layer numbers from 0` : say`a list of names`
    case 'mapping':
      return say`pairs such as prompt: question, with names that this key knows`
    case 'text':
      return say`text`
  }
}
