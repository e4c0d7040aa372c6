import type * as z from 'zod'
import { canonicalRecipe, show, type CanonicalRecipe, type RecipeOverride } from './canonical.ts'
import { checkRecipe, expectation, unsupportedFindings, type Finding } from './checks.ts'
import { fieldAt } from './fields.ts'
import { asText, say, withFirst, type RecipeIssue } from './issue.ts'
import { hasEvalSet } from './derived.ts'
import { recipeSchema, recipeVersion, type Recipe, type SectionName } from './schema.ts'
import { closest } from './suggest.ts'

export interface ValidateOptions {
  readonly overrides?: readonly RecipeOverride[]
  /** Source text of a scalar of the document, where it is known. */
  readonly written?: (path: readonly string[]) => string | undefined
}

/** `recipe` is null when there is an error among the issues. */
export interface Validation {
  readonly recipe: Recipe | null
  readonly issues: readonly RecipeIssue[]
}

function nested(values: ReadonlyMap<string, unknown>, version: unknown): Record<string, unknown> {
  const tree: Record<string, Record<string, unknown>> = { model: {} }
  for (const [path, value] of values) {
    const [section, key] = path.split('.') as [string, string]
    const part = tree[section] ?? {}
    part[key] = value
    tree[section] = part
  }
  return version === undefined || version === null ? tree : { version, ...tree }
}

/** Fills in the defaults that depend on other keys, and settles which of two ways to say the same wins. */
function settle(recipe: Recipe, given: (path: string) => boolean, findings: Finding[]): Recipe {
  const training = { ...recipe.training }
  const save = { ...recipe.save }
  if (training.training_type === 'full') {
    if (!given('training.learning_rate')) training.learning_rate = 2e-5
    if (!given('save.method')) save.method = ['merged_16bit']
  }
  if (!given('training.eval_steps') && hasEvalSet(recipe)) training.eval_steps = 0.1
  if (training.warmup_ratio !== null) {
    const steps = given('training.warmup_steps') ? training.warmup_steps : 0
    if (steps > 0 && training.warmup_ratio > 0) {
      findings.push({
        severity: 'warning',
        code: 'ineffective',
        key: 'training.warmup_ratio',
        at: 'key',
        ...say`training.warmup_ratio has no effect: training.warmup_steps is above 0 and wins`,
      })
    }
    training.warmup_steps = steps
    if (steps > 0 || training.warmup_ratio === 0) training.warmup_ratio = null
  }
  // A default warm-up longer than a short run would keep the rate from ever reaching its peak.
  const tooLong = training.max_steps > 0 && training.warmup_steps >= training.max_steps
  if (!given('training.warmup_steps') && tooLong) training.warmup_steps = 0
  return moveTrainedWhole({ ...recipe, training, save })
}

/** `embed_tokens` and `lm_head` among the targets are trained whole, as in the Python library. */
function moveTrainedWhole(recipe: Recipe): Recipe {
  const whole = new Set(['embed_tokens', 'lm_head'])
  const { target_modules, modules_to_save } = recipe.lora
  const unique = [...new Set(target_modules)]
  return {
    ...recipe,
    lora: {
      ...recipe.lora,
      target_modules: unique.filter((name) => !whole.has(name)),
      modules_to_save: [...new Set([...modules_to_save, ...unique.filter((name) => whole.has(name))])].sort(),
    },
  }
}

type Locate = (finding: Finding) => RecipeIssue

/** Puts a finding where its key stands in the document, or on the flag that set it. */
function locator({ origins }: CanonicalRecipe): Locate {
  return ({ key, at = 'value', item, ...finding }) => {
    const origin = origins.get(key)
    if (origin?.flag !== undefined) return { ...finding, at, path: key.split('.'), flag: origin.flag }
    return origin === undefined
      ? { ...finding, at: 'key', path: key.split('.') }
      : { ...finding, at, path: item === undefined ? origin.path : [...origin.path, item] }
  }
}

function typeFinding(issue: z.core.$ZodIssue, values: ReadonlyMap<string, unknown>): Finding {
  const [section, key, index] = issue.path as [string, string?, number?]
  if (section === 'version') {
    return {
      severity: 'error',
      code: 'value',
      key: 'version',
      ...say`version must be ${recipeVersion}: this program does not read other versions of a recipe`,
    }
  }
  const path = key === undefined ? section : `${section}.${key}`
  if (path === 'model.name' && !values.has(path)) {
    return { severity: 'error', code: 'missing', key: 'model', ...say`model is missing: name a model folder or a Hub id` }
  }
  let value = values.get(path)
  if (Array.isArray(value) && index !== undefined) value = (value as unknown[])[index]
  const list = index === undefined ? '' : `[${index}]`
  const meta = fieldAt(path)?.meta
  const own =
    issue.code === 'invalid_format' || issue.code === 'custom'
      ? asText(issue.message)
      : issue.code === 'too_big' && issue.origin === 'string'
        ? say`text of at most ${Number(issue.maximum)} characters`
        : index !== undefined && meta?.values !== undefined
          ? say`one of ${Object.keys(meta.values).join(', ')}`
          : expectation(path)
  const near = meta?.values !== undefined && typeof value === 'string' ? closest(value, Object.keys(meta.values)) : undefined
  return {
    severity: 'error',
    code: issue.code === 'too_big' || issue.code === 'too_small' ? 'range' : issue.code === 'invalid_type' ? 'type' : 'value',
    key: path,
    item: index,
    ...say`${path}${list} must be ${own}; ${show(value)} is not${near === undefined ? '' : say`; did you mean ${near}?`}`,
    ...(near === undefined ? {} : { suggestion: near }),
  }
}

/** Names the key as it was written: an alias, or the short form of `model`. */
function inOwnWords(issue: RecipeIssue, canonical: string): RecipeIssue {
  const written = issue.flag ?? issue.path.filter((part) => typeof part === 'string').join('.')
  const { template, values } = issue
  return template !== undefined && values?.[0] === canonical ? { ...issue, ...withFirst({ template, values }, written) } : issue
}

/**
 * Validates a parsed document (of YAML or JSON) with flags laid over it: types, ranges, rules between keys, and settings
 * that are not available yet. Every problem is reported, not only the first.
 */
export function validateRecipe(document: unknown, { overrides = [], written }: ValidateOptions = {}): Validation {
  const canonical = canonicalRecipe(document, overrides, written)
  const { values, sections, version } = canonical
  const issues = [...canonical.issues]
  const locate = locator(canonical)
  if (issues.some((issue) => issue.path.length === 0)) return { recipe: null, issues }
  const parsed = recipeSchema.safeParse(nested(values, version))
  if (!parsed.success) {
    const seen = new Set<string>()
    for (const issue of parsed.error.issues) {
      const finding = typeFinding(issue, values)
      if (seen.has(finding.key)) continue
      seen.add(finding.key)
      issues.push(inOwnWords(locate(finding), finding.key))
    }
    return { recipe: null, issues }
  }
  const findings: Finding[] = []
  const given = { key: (path: string) => values.has(path), section: (name: SectionName) => sections.has(name) }
  const recipe = settle(parsed.data, given.key, findings)
  findings.push(...checkRecipe(recipe, given), ...unsupportedFindings(recipe))
  issues.push(...findings.map(locate))
  return { recipe: issues.some((issue) => issue.severity === 'error') ? null : recipe, issues }
}
