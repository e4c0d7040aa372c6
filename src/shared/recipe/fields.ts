import { fieldRegistry, type FieldMeta } from './field.ts'
import { type SectionName, sectionNames, sections } from './schema.ts'

/** One key of the recipe with all that is known about it. */
export interface RecipeField {
  readonly section: SectionName
  readonly key: string
  /** `section.key` */
  readonly path: string
  readonly meta: FieldMeta
}

function sectionFields(section: SectionName): RecipeField[] {
  return Object.entries(sections[section].shape).map(([key, type]) => {
    const meta = fieldRegistry.get(type)
    if (meta === undefined) throw new Error(`${section}.${key} has no description`)
    return { section, key, path: `${section}.${key}`, meta }
  })
}

/** Every key, in the order in which a recipe is written. */
export const recipeFields: readonly RecipeField[] = sectionNames.flatMap(sectionFields)

const byPath = new Map(recipeFields.map((field) => [field.path, field]))
const bySpelling = new Map(
  recipeFields.flatMap((field) =>
    [field.key, ...(field.meta.aliases ?? [])].map((name) => [`${field.section}.${name}`, field] as const),
  ),
)

/** The field at `section.key`, by its own name only. */
export function fieldAt(path: string): RecipeField | undefined {
  return byPath.get(path)
}

/** The field that a key of a section means, by its name or an alias. */
export function findField(section: SectionName, key: string): RecipeField | undefined {
  return bySpelling.get(`${section}.${key}`)
}

/** Keys and aliases that a section understands. */
export function spellings(section: SectionName): string[] {
  return recipeFields.filter((field) => field.section === section).flatMap((field) => [field.key, ...(field.meta.aliases ?? [])])
}

export function isSection(name: string): name is SectionName {
  return Object.hasOwn(sections, name)
}
