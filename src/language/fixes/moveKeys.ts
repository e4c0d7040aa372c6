import type { TextEdit } from 'vscode-languageserver'
import { isSection, recipeFields, sectionNames, type RecipeField, type SectionName } from '#shared/recipe.ts'
import { entrySpan, insertKeys, linesOf, removeEntry, type Insertion } from '../edit/recipeEdits.ts'
import type { Entry, Outline } from '../outline.ts'
import { removal, type Fix } from './fix.ts'
import { t } from '../texts.ts'

/** Where a key belongs that stands elsewhere. */
function homeOf(entry: Entry): RecipeField | undefined {
  return recipeFields.find(({ key }) => key === entry.key) ?? recipeFields.find(({ meta }) => meta.aliases?.includes(entry.key))
}

function moved(outline: Outline, entry: Entry, field: RecipeField): Insertion {
  const [first = '', ...rest] = linesOf(outline, entry)
  return { key: field.key, lines: [first.replace(/^("[^"]*"|'[^']*'|[^:]*)/, field.key), ...rest] }
}

/** Fixes for a key that stands in another section than its own, or in none. */
export function moveFixes(outline: Outline, entry: Entry): Fix[] {
  const field = homeOf(entry)
  if (field === undefined) return []
  const there = outline.find(field.path)
  if (there !== undefined && there !== entry)
    return [
      { title: t('Remove {0}: {1} is given', entry.key, field.path), edits: [removeEntry(outline, entry)], preferred: true },
    ]
  return [{ title: t('Move to {0}', field.section), edits: moveAll(outline, [entry]), preferred: true }, removal(outline, entry)]
}

/** Keys at the top or in another section that have a section of their own. */
export function strayKeys(outline: Outline): Entry[] {
  return outline.entries.filter((entry) => {
    if (entry.field !== undefined || (entry.parent === undefined && (isSection(entry.key) || entry.key === 'version')))
      return false
    const field = homeOf(entry)
    return (
      field !== undefined &&
      outline.find(field.path) === undefined &&
      (entry.parent === undefined || isSection(entry.parent)) &&
      entry.style !== 'section'
    )
  })
}

/** Puts keys into their sections, all in one step. */
export function moveAll(outline: Outline, entries: readonly Entry[]): TextEdit[] {
  const bySection = new Map<SectionName, Insertion[]>()
  const seen = new Set<string>()
  const taken: Entry[] = []
  for (const entry of entries) {
    const field = homeOf(entry)
    if (field === undefined || seen.has(field.path)) continue
    seen.add(field.path)
    taken.push(entry)
    bySection.set(field.section, [...(bySection.get(field.section) ?? []), moved(outline, entry, field)])
  }
  const removed = taken.map((entry) => entrySpan(outline, entry))
  const edits = sectionNames.flatMap((section) => {
    const keys = bySection.get(section)
    return keys === undefined ? [] : [insertKeys(outline, section, keys)]
  })
  // A new section may be wanted in the middle of what is taken out: then it goes before it.
  const placed = edits.map((edit) => {
    const { start } = outline.source.span(edit.range)
    const around = removed.find(
      (span) => start > span.start && start <= span.end && !(start === span.end && outline.source.text[start - 1] !== '\n'),
    )
    if (around === undefined) return edit
    const lines = edit.newText.startsWith(outline.source.eol)
      ? edit.newText.slice(outline.source.eol.length) + outline.source.eol
      : edit.newText
    return outline.source.edit({ start: around.start, end: around.start }, lines)
  })
  return [...placed, ...taken.map((entry) => removeEntry(outline, entry))]
}
