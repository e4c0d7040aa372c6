import { recipeFields, secretKeys, type RecipeField, type RecipeOverride } from '#shared/recipe.ts'
import { flagKey, type Words } from './flags.ts'

/** Flags that mean a key of the recipe: `section.key` always, and the bare key or an alias where that is unambiguous. */
const byName = new Map<string, RecipeField>()
for (const field of recipeFields) {
  for (const name of [field.key, ...(field.meta.aliases ?? [])]) byName.set(`${field.section}.${name}`, field)
}
const bareNames = (field: RecipeField): string[] =>
  field.meta.flag === null || field.section === 'inference' ? [] : [field.meta.flag ?? field.key]
for (const field of recipeFields) for (const name of bareNames(field)) byName.set(name, field)
for (const field of recipeFields) {
  if (field.meta.flag === null || field.section === 'inference') continue
  // `--path`, `--format` or `--name` alone would say nothing.
  for (const alias of field.meta.aliases ?? []) {
    if (!byName.has(alias) && !['path', 'format', 'methods'].includes(alias)) byName.set(alias, field)
  }
}

/** The key of the recipe that a flag sets. */
export function recipeFlag(name: string): RecipeField | undefined {
  return byName.get(flagKey(name))
}

/** Names for did-you-mean. */
export const recipeFlagNames: readonly string[] = [...byName.keys()]

/** The name that help shows. */
export function flagName(field: RecipeField): string {
  return bareNames(field)[0] ?? field.path
}

/** Flags whose value is a secret: read past, kept nowhere. */
export function isSecretFlag(name: string): boolean {
  const key = flagKey(name)
  return secretKeys.has(key.slice(key.lastIndexOf('.') + 1))
}

const empty = new Set(['none', 'null', ''])

/** The value of a recipe flag as the recipe would have it; types and ranges are judged there. */
export function readRecipeFlag(flag: string, field: RecipeField, inline: string | undefined, words: Words): RecipeOverride {
  const { meta, path } = field
  if (meta.kind === 'boolean') return { path, flag, value: words.switch(flag, inline) }
  // `--use_gradient_checkpointing` and the like also stand alone in old command lines.
  if (path === 'training.gradient_checkpointing' && inline === undefined && /^(?:--|$)/.test(words.peek() ?? '')) {
    return { path, flag, value: 'true' }
  }
  if (meta.kind === 'list') {
    // A list of files is written by repeating the flag; a list of names never holds the recipe that may follow it.
    if (meta.path !== undefined) return { path, flag, value: [words.value(flag, inline, 'PATH')] }
    const values = words.values(flag, inline, 'NAME', (word) => /\.(?:ya?ml|json)$/i.test(word))
    return { path, flag, value: values.length === 1 ? values[0] : values }
  }
  const value = words.value(flag, inline, meta.path === undefined ? 'VALUE' : 'PATH')
  return { path, flag, value: meta.nullable && empty.has(value.toLowerCase()) ? null : value }
}
