import { isModuleName } from './loraSection.ts'
import type { Recipe } from './schema.ts'

/** Samples (rows, when packing) in one optimizer step. */
export function effectiveBatch(recipe: Recipe): number {
  return recipe.training.batch_size * recipe.training.gradient_accumulation_steps
}

/** Optimizer steps of one epoch over `samples` samples (rows, when packing); the last step may be smaller. */
export function stepsPerEpoch(recipe: Recipe, samples: number): number {
  return Math.ceil(samples / effectiveBatch(recipe))
}

/** Optimizer steps of the whole run. */
export function totalSteps(recipe: Recipe, samples: number): number {
  const { max_steps, num_epochs } = recipe.training
  return max_steps > 0 ? max_steps : Math.ceil(num_epochs * stepsPerEpoch(recipe, samples))
}

/** Steps over which the learning rate rises. */
export function warmupSteps(recipe: Recipe, steps: number): number {
  const { warmup_steps, warmup_ratio } = recipe.training
  return warmup_ratio === null ? warmup_steps : Math.ceil(warmup_ratio * steps)
}

/** Steps between evaluations; 0 is off. */
export function evalInterval(recipe: Recipe, steps: number): number {
  const { eval_steps } = recipe.training
  return eval_steps > 0 && eval_steps < 1 ? Math.max(1, Math.ceil(eval_steps * steps)) : eval_steps
}

/** Cycles of the schedule: half a cosine, one restart, unless the recipe says otherwise. */
export function schedulerCycles(recipe: Recipe): number {
  const { num_cycles, lr_scheduler_type } = recipe.training
  return num_cycles ?? (lr_scheduler_type === 'cosine_with_restarts' ? 1 : 0.5)
}

/** Whether there is anything to evaluate on. */
export function hasEvalSet(recipe: Recipe): boolean {
  return recipe.data.eval_dataset.length > 0 || recipe.data.eval_split !== null
}

/** What the adapter is multiplied by: alpha / r, or alpha / √r with rsLoRA. */
export function loraScale(recipe: Recipe): number {
  const { lora_alpha, lora_r, use_rslora } = recipe.lora
  return lora_alpha / (use_rslora ? Math.sqrt(lora_r) : lora_r)
}

/** A list of names, or the regular expression that stands alone in it. */
export function moduleChoice(names: readonly string[]): readonly string[] | { readonly pattern: string } {
  const [first] = names
  return names.length === 1 && !isModuleName(first!) ? { pattern: first! } : names
}

/** The adapted layers, or `all-linear`. */
export function targetModules(recipe: Recipe): 'all-linear' | ReturnType<typeof moduleChoice> {
  const { target_modules } = recipe.lora
  return target_modules.includes('all-linear') ? 'all-linear' : moduleChoice(target_modules)
}

const byteUnits: Readonly<Record<string, number>> = {
  '': 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  t: 1e12,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
  ti: 2 ** 40,
}

/** Bytes in a size such as `5GB` (decimal, as Hugging Face counts) or `512MiB`. */
export function parseByteSize(size: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?$/i.exec(size.trim())
  const unit = match === null ? undefined : byteUnits[match[2]!.toLowerCase()]
  if (match === null || unit === undefined) throw new RangeError(`${size} is not a size such as 5GB`)
  return Math.floor(Number(match[1]) * unit)
}
