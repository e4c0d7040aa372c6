import { say, type RecipeIssue, type Said } from './issue.ts'
import { closest } from './suggest.ts'
import { findField, isSection, recipeFields, spellings, type RecipeField } from './fields.ts'
import { secretHint, secretKeys, sectionNames, type SectionName } from './schema.ts'

/** A value that replaces the one of the document, from a command-line flag. */
export interface RecipeOverride {
  /** `section.key` */
  readonly path: string
  readonly value: unknown
  /** The flag as typed, for messages. */
  readonly flag: string
}

/** Where a canonical key came from. */
export interface Origin {
  readonly path: readonly string[]
  readonly flag?: string
}

/** A recipe with its own key names only, not yet validated. */
export interface CanonicalRecipe {
  /** `section.key` → value; only keys that were given. */
  readonly values: Map<string, unknown>
  /** `section.key` → place in the document. */
  readonly origins: Map<string, Origin>
  /** Sections that stand in the document. */
  readonly sections: Set<SectionName>
  readonly version: unknown
  readonly issues: RecipeIssue[]
}

/** What a flag replaces in the document besides its own key: the other way to say the same. */
const replaces: Readonly<Record<string, readonly string[]>> = {
  'training.warmup_steps': ['training.warmup_ratio'],
  'training.warmup_ratio': ['training.warmup_steps'],
  'training.num_epochs': ['training.max_steps'],
  'data.dataset': ['data.local_dataset'],
  'data.local_dataset': ['data.dataset'],
  'data.eval_dataset': ['data.eval_split'],
  'data.eval_split': ['data.eval_dataset'],
  'lora.layers_to_transform': ['lora.finetune_last_n_layers'],
  'lora.finetune_last_n_layers': ['lora.layers_to_transform'],
}

const isMapping = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** A short look of a value for a message. */
export function show(value: unknown): string | Said {
  if (value === null) return say`empty`
  if (Array.isArray(value)) return say`a list`
  if (value === undefined) return say`nothing`
  if (typeof value === 'object') return say`a section`
  const text = JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}

function unknownTopKey(key: string, value: unknown): RecipeIssue {
  const base = { severity: 'error', path: [key], at: 'key' } as const
  const owner = recipeFields.find((field) => field.key === key || field.meta.aliases?.includes(key))
  if (owner !== undefined && !isMapping(value)) {
    return { ...base, code: 'wrong_section', ...say`${key} belongs under ${owner.section}: write ${owner.section}.${owner.key}` }
  }
  const near = closest(key, ['version', ...sectionNames])
  const nearField =
    near === undefined
      ? closest(
          key,
          recipeFields.map((field) => field.key),
        )
      : undefined
  const field = recipeFields.find((candidate) => candidate.key === nearField)
  if (near === undefined && field !== undefined) {
    return { ...base, code: 'unknown_key', ...say`${key} is not a section of a recipe; did you mean ${field.path}?` }
  }
  const hint =
    near === undefined ? say`; the sections are ${['version', ...sectionNames].join(', ')}` : say`; did you mean ${near}?`
  return {
    ...base,
    code: 'unknown_key',
    ...say`${key} is not a section of a recipe${hint}`,
    ...(near === undefined ? {} : { suggestion: near }),
  }
}

function unknownKey(section: SectionName, key: string): RecipeIssue {
  const base = { severity: 'error', path: [section, key], at: 'key' } as const
  const elsewhere = recipeFields.filter((field) => field.key === key || field.meta.aliases?.includes(key))
  const first = elsewhere[0]
  if (first !== undefined) {
    return {
      ...base,
      code: 'wrong_section',
      ...say`${section}.${key} is not a key of a recipe; ${key} belongs under ${first.section}: write ${first.path}`,
    }
  }
  const own = closest(key, spellings(section))
  const other =
    own === undefined
      ? closest(
          key,
          recipeFields.map((field) => field.key),
        )
      : undefined
  const field = recipeFields.find((candidate) => candidate.key === other)
  const hint = own !== undefined ? say`; did you mean ${own}?` : field !== undefined ? say`; did you mean ${field.path}?` : ''
  return {
    ...base,
    code: 'unknown_key',
    ...say`${section}.${key} is not a key of a recipe${hint}`,
    ...(own === undefined ? {} : { suggestion: own }),
  }
}

/** A number that stood where text belongs (`revision: 1e10`) is read as it was written. */
function asWritten(field: RecipeField, value: unknown, written: string | undefined): unknown {
  return field.meta.kind === 'text' && typeof value === 'number' ? (written ?? String(value)) : value
}

/**
 * Reads a parsed document into canonical keys: resolves aliases and the short form of `model`, drops secrets and empty
 * values, and reports unknown, misplaced and repeated keys. `written` gives the source text of a scalar.
 */
export function canonicalRecipe(
  document: unknown,
  overrides: readonly RecipeOverride[] = [],
  written: (path: readonly string[]) => string | undefined = () => undefined,
): CanonicalRecipe {
  const values = new Map<string, unknown>()
  const origins = new Map<string, Origin>()
  const present = new Set<SectionName>()
  const issues: RecipeIssue[] = []
  let version: unknown = undefined

  const set = (field: RecipeField, value: unknown, path: readonly string[]): void => {
    const earlier = origins.get(field.path)
    if (earlier !== undefined) {
      if (String(values.get(field.path)) === String(value)) return
      issues.push({
        severity: 'error',
        code: 'duplicate_key',
        path,
        at: 'key',
        ...say`${path.join('.')} and ${earlier.path.join('.')} are two names of the same setting; keep one`,
      })
      return
    }
    if (value === null || (value === '' && field.meta.kind === 'list')) {
      if (!field.meta.nullable && field.meta.default !== undefined) {
        issues.push({
          severity: 'warning',
          code: 'empty',
          path,
          at: 'key',
          ...say`${path.join('.')} is empty; its default ${show(field.meta.default)} is used`,
        })
      }
      return
    }
    origins.set(field.path, { path })
    values.set(field.path, asWritten(field, value, written(path)))
  }

  const readSection = (section: SectionName, content: unknown): void => {
    if (content === null || content === undefined) return
    if (section === 'model' && !isMapping(content) && !Array.isArray(content)) {
      set(findField('model', 'name')!, content, ['model'])
      return
    }
    if (!isMapping(content)) {
      issues.push({
        severity: 'error',
        code: 'type',
        path: [section],
        at: 'value',
        ...say`${section} must be a section with keys below it, but is ${show(content)}`,
      })
      return
    }
    present.add(section)
    for (const [key, value] of Object.entries(content)) {
      const field = findField(section, key)
      if (field !== undefined) set(field, value, [section, key])
      else if (secretKeys.has(key)) {
        if (value === null || value === '') continue
        issues.push({
          severity: 'warning',
          code: 'secret',
          path: [section, key],
          at: 'key',
          ...say`${section}.${key} is a secret: it is not used and not recorded; remove it from the file and ${secretHint(key)}`,
        })
      } else issues.push(unknownKey(section, key))
    }
  }

  if (isMapping(document)) {
    for (const [key, value] of Object.entries(document)) {
      if (key === 'version') version = value
      else if (isSection(key)) readSection(key, value)
      else issues.push(unknownTopKey(key, value))
    }
  } else if (document !== null && document !== undefined) {
    issues.push({
      severity: 'error',
      code: 'type',
      path: [],
      at: 'value',
      ...say`a recipe is a list of sections (${sectionNames.join(', ')}), but this is ${show(document)}`,
    })
  }

  const overridden = new Set(overrides.map((override) => override.path))
  for (const path of overrides.flatMap((override) => replaces[override.path] ?? [])) {
    if (overridden.has(path)) continue
    values.delete(path)
    origins.delete(path)
  }
  for (const { path, value, flag } of overrides) {
    const origin = { path: path.split('.'), flag }
    if (value === null) values.delete(path)
    else values.set(path, value)
    origins.set(path, origin)
  }
  return { values, origins, sections: present, version, issues }
}
