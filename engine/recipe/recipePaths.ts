import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { fieldAt, recipeFields, type Recipe, type RecipeField, type RecipeOverride } from '#shared/recipe.ts'

const dataFile = /\.(?:jsonl?|csv|tsv|txt|md|parquet)(?:\.gz)?$/i

/** Whether a name of a model or data set is a path for certain, and not the id of a repository. */
export function looksLikePath(name: string): boolean {
  return path.isAbsolute(name) || /^(?:\.{1,2}|~)(?:[/\\]|$)/.test(name) || dataFile.test(name) || name.includes('\\')
}

function absolute(name: string, base: string): string {
  return path.resolve(base, name.startsWith('~/') || name === '~' ? path.join(os.homedir(), name.slice(1)) : name)
}

/** Makes one value absolute. Names that may be ids of a hub become paths only when they are there. */
function resolveName({ meta, path: key }: RecipeField, name: string, base: string): string {
  const maybeId = meta.path === 'model' || key === 'data.dataset'
  if (key === 'training.resume_from' && name === 'latest') return name
  if (maybeId && !looksLikePath(name) && !fs.existsSync(absolute(name, base))) return name
  return absolute(name, base)
}

function resolveValue(field: RecipeField, value: unknown, base: string): unknown {
  if (typeof value === 'string') return resolveName(field, value, base)
  if (Array.isArray(value))
    return value.map((item: unknown) => (typeof item === 'string' ? resolveName(field, item, base) : item))
  return value
}

/** Whether `data.chat_template` names a file, and is not the template itself. */
function isTemplateFile(template: string, base: string): boolean {
  return !/[{}\n]/.test(template) && (/\.(?:jinja2?|j2|txt)$/i.test(template) || fs.existsSync(absolute(template, base)))
}

/** The recipe with every path absolute; relative ones are taken from `base`, the folder of the recipe. */
export function resolveRecipePaths(recipe: Recipe, base: string): Recipe {
  const resolved = structuredClone(recipe)
  for (const field of recipeFields) {
    if (field.meta.path === undefined) continue
    const section = resolved[field.section] as Record<string, unknown>
    section[field.key] = resolveValue(field, section[field.key], base)
  }
  const template = resolved.data.chat_template
  if (template !== null && isTemplateFile(template, base)) resolved.data.chat_template = absolute(template, base)
  return resolved
}

/** Flags with their paths made absolute: on the command line they are relative to the current folder. */
export function resolveOverridePaths(overrides: readonly RecipeOverride[], cwd: string): RecipeOverride[] {
  return overrides.map((override) => {
    const field = fieldAt(override.path)
    if (field?.meta.path === undefined) return override
    return { ...override, value: resolveValue(field, override.value, cwd) }
  })
}
