import type { RecipeOverride } from '#shared/recipe.ts'
import { looksLikePath } from '../recipe/recipePaths.ts'
import { flagKey, usage, type Flag, type FlagTable, type FlagValues } from './flags.ts'

/**
 * The command line of the Python library's `unsloth-cli.py`, so that one can be pasted. Flags that the recipe has under
 * the same name are read as such; these are the ones that mean something else or exist only there.
 */
export const oldFlags = {
  save_model: { type: 'boolean', summary: 'save the model' },
  save_gguf: { type: 'boolean', summary: 'save as GGUF' },
  push_model: { type: 'boolean', summary: 'upload the model' },
  push_gguf: { type: 'boolean', summary: 'upload GGUF files' },
  report_to: { type: 'list', summary: 'where metrics go', commas: true },
  raw_text_file: { type: 'text', summary: 'running text to train on', value: 'FILE' },
  loftq_config: { type: 'text', summary: 'settings of LoftQ', value: 'CONFIG' },
} as const satisfies FlagTable

export type OldFlags = Partial<FlagValues<typeof oldFlags>>

export function oldFlag(name: string): { readonly key: keyof OldFlags; readonly spec: Flag } | undefined {
  const key = flagKey(name)
  return Object.hasOwn(oldFlags, key) ? { key: key as keyof OldFlags, spec: oldFlags[key as keyof typeof oldFlags] } : undefined
}

/** Flags that only the old command line has, or spells so. */
const oldSpellings = new Set([
  ...Object.keys(oldFlags),
  'model_name',
  'r',
  'use_gradient_checkpointing',
  'random_state',
  'per_device_train_batch_size',
  'hub_path',
  'hub_token',
])
/** Flags that only the new command line has. */
const newSpellings = new Set([
  'model',
  'config',
  'num_epochs',
  'local_dataset',
  'format_type',
  'training_type',
  'batch_size',
  'lora_r',
  'random_seed',
])

/** Whether the flags of a command line without a recipe are those of the old program. */
export function isOldCommandLine(names: readonly string[]): boolean {
  const keys = names.map(flagKey)
  return keys.some((key) => oldSpellings.has(key)) && !keys.some((key) => newSpellings.has(key) || key.includes('.'))
}

/**
 * What the old program does when nothing is said, where that differs from a recipe's defaults and changes the result:
 * checkpointing and 8-bit moments are left to the engine.
 */
const oldDefaults: readonly (readonly [path: string, value: unknown, flag: string])[] = [
  ['model.name', 'unsloth/llama-3-8b', '--model_name'],
  ['data.dataset', 'yahma/alpaca-cleaned', '--dataset'],
  ['data.format_type', 'alpaca', '--dataset'],
  ['lora.lora_r', 16, '--r'],
  ['lora.lora_alpha', 16, '--lora_alpha'],
  ['training.max_steps', 400, '--max_steps'],
  ['training.output_dir', 'outputs', '--output_dir'],
]

export interface Translation {
  readonly overrides: RecipeOverride[]
  readonly warnings: string[]
}

function reports(names: readonly string[], warnings: string[]): RecipeOverride[] {
  const wanted = new Set(names.map((name) => name.toLowerCase()))
  const all = wanted.has('all')
  const overrides: RecipeOverride[] = []
  const flag = '--report_to'
  if (all || wanted.has('tensorboard')) overrides.push({ path: 'logging.enable_tensorboard', value: true, flag })
  if (all || wanted.has('wandb')) overrides.push({ path: 'logging.enable_wandb', value: true, flag })
  const others = [...wanted].filter((name) => !['all', 'none', 'tensorboard', 'wandb'].includes(name))
  if (others.length > 0) warnings.push(`--report_to ${others.join(' ')} is not available: metrics are in the run directory`)
  return overrides
}

/** The flags that exist only in the old program, as keys of a recipe. */
export function translateOldFlags(old: OldFlags, overrides: readonly RecipeOverride[]): Translation {
  const warnings: string[] = []
  const result: RecipeOverride[] = []
  const given = new Map(overrides.map((override) => [override.path, override]))
  const put = (path: string, value: unknown, flag: string): void => {
    result.push({ path, value, flag })
  }
  if (old.report_to !== undefined) result.push(...reports(old.report_to, warnings))
  if (old.raw_text_file !== undefined) {
    put('data.local_dataset', [old.raw_text_file], '--raw_text_file')
    put('data.format_type', 'raw', '--raw_text_file')
  }
  if (old.loftq_config !== undefined && !/^(?:none|\{\s*\})$/i.test(old.loftq_config.trim())) {
    put('lora.use_loftq', true, '--loftq_config')
  }
  const method = given.get('save.method')
  if (old.save_gguf === true || old.push_gguf === true) {
    const first = old.save_model === true ? (method?.value ?? 'merged_16bit') : undefined
    const names = [first, 'gguf'].flat().filter((name) => name !== undefined)
    put('save.method', names, old.save_gguf === true ? '--save_gguf' : '--push_gguf')
  }
  if (old.push_model === true) put('hub.push', true, '--push_model')
  else if (old.push_gguf === true) put('hub.push', true, '--push_gguf')
  return { overrides: result, warnings }
}

/** A whole old command line as keys of a recipe: its defaults, its data format, its meaning of saving. */
export function translateOldCommandLine(old: OldFlags, overrides: readonly RecipeOverride[]): Translation {
  const { overrides: translated, warnings } = translateOldFlags(old, overrides)
  let flags = [...overrides]

  const seeds = flags.filter((override) => override.path === 'training.random_seed')
  if (seeds.length > 1) {
    const seed = seeds.find((override) => flagKey(override.flag) === '__seed') ?? seeds[seeds.length - 1]!
    flags = flags.filter((override) => override.path !== 'training.random_seed' || override === seed)
    if (new Set(seeds.map((override) => override.value)).size > 1) {
      const names = seeds.map((override) => override.flag).join(' and ')
      warnings.push(`${names} differ: one seed decides everything here, ${String(seed.value)}`)
    }
  }

  // In the old program nothing is kept without --save_model; losing a finished run helps nobody, so the adapter is.
  const saves = old.save_model === true
  const saving = flags.filter((override) => override.path === 'save.method' || override.path === 'save.path')
  if (!saves) {
    flags = flags.filter((override) => !saving.includes(override))
    if (old.save_gguf !== true && old.push_gguf !== true) {
      warnings.push('without --save_model the Python tool saves nothing; here the adapter is kept in the run directory')
    } else flags.push(...saving.filter((override) => override.path === 'save.path'))
  }

  const all = [...flags, ...translated]
  const has = (path: string): boolean => all.some((override) => override.path === path)
  const defaults = oldDefaults
    .filter(([path]) => !has(path) && !(path === 'data.dataset' && has('data.local_dataset')))
    .map(([path, value, flag]): RecipeOverride => ({ path, value, flag: `${flag} (default)` }))
  if (saves && !has('save.method')) defaults.push({ path: 'save.method', value: 'merged_16bit', flag: '--save_method (default)' })
  if ((saves || old.save_gguf === true) && !has('save.path')) {
    defaults.push({ path: 'save.path', value: 'model', flag: '--save_path (default)' })
  }
  if (has('hub.push') && !has('hub.repo_id')) throw usage('--push_model needs --hub_path, such as me/my-model')

  // The old --dataset is an id or a file.
  const merged = [...defaults, ...all].map((override) =>
    override.path === 'data.dataset' && typeof override.value === 'string' && looksLikePath(override.value)
      ? { ...override, path: 'data.local_dataset', value: [override.value] }
      : override,
  )
  return { overrides: merged, warnings }
}
