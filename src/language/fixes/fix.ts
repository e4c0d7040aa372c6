import type { TextEdit } from 'vscode-languageserver'
import { fieldAt } from '#shared/recipe.ts'
import { insertKeys, removeEntry, setValue } from '../edit/recipeEdits.ts'
import { quoteIfNeeded } from '../fieldText.ts'
import type { Entry, Outline } from '../outline.ts'
import { t } from '../texts.ts'

/** One way to put something right. */
export interface Fix {
  readonly title: string
  readonly edits: readonly TextEdit[]
  readonly preferred?: boolean
}

/** Takes a key out. */
export const removal = (outline: Outline, entry: Entry): Fix => ({
  title: t('Remove {0}', entry.key),
  edits: [removeEntry(outline, entry)],
})

/** Puts a suggestion in the place of a value, or of one item of a list. */
export function suggested(outline: Outline, entry: Entry, suggestion: string, item: string | number | undefined): Fix {
  const text = quoteIfNeeded(suggestion)
  const written = /^[\d.]+$/.test(suggestion) ? suggestion : text
  const span = typeof item === 'number' ? entry.items[item]?.span : undefined
  return {
    title: t('Change to {0}', suggestion),
    preferred: true,
    edits: [span === undefined ? setValue(outline, entry, written) : outline.source.edit(span, written)],
  }
}

/** Adds `section.key` or changes it where it stands. */
export function put(outline: Outline, path: string, value: string): TextEdit {
  const { section, key } = fieldAt(path)!
  const entry = outline.find(path)
  return entry === undefined
    ? insertKeys(outline, section, [{ key, lines: [`${key}: ${value}`] }])
    : setValue(outline, entry, value)
}
