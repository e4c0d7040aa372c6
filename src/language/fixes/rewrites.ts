import { findField } from '#shared/recipe.ts'
import { renameKey } from '../edit/recipeEdits.ts'
import type { Outline } from '../outline.ts'
import type { Fix } from './fix.ts'
import { t } from '../texts.ts'

const decimal = /^[-+]?\d*\.?\d+$/
const scientific = /^[-+]?\d*\.?\d+[eE][-+]?\d+$/

/** Other ways to write what stands at an offset: the number, the key, the whole file. */
export function rewrites(outline: Outline, offset: number): Fix[] {
  const { source } = outline
  const fixes: Fix[] = []
  const entry = outline.at(offset)
  if (entry?.field !== undefined) {
    const { field, value } = entry
    if (field.meta.kind === 'number' && decimal.test(value) && Number(value) !== 0 && Math.abs(Number(value)) < 0.01) {
      const text = Number(value).toExponential().replace('e+', 'e')
      fixes.push({ title: t('Write as {0}', text), edits: [source.edit(entry.valueSpan, text)] })
    } else if (field.meta.kind === 'number' && scientific.test(value)) {
      const text = plainDecimal(Number(value))
      if (text !== undefined) fixes.push({ title: t('Write as {0}', text), edits: [source.edit(entry.valueSpan, text)] })
    }
    if (entry.section !== undefined && entry.key !== field.key && findField(field.section, entry.key) === field) {
      fixes.push({ title: t('Use the usual name {0}', field.key), edits: [renameKey(outline, entry, field.key)] })
    }
  }
  const aliases = outline.entries.filter(
    ({ field, key, section }) => section !== undefined && field !== undefined && field.key !== key,
  )
  if (aliases.length > 1)
    fixes.push({
      title: t('Use the usual names of all keys'),
      edits: aliases.map((alias) => renameKey(outline, alias, alias.field!.key)),
    })
  return fixes
}

/** A number without an exponent; undefined when that would be no easier to read. */
function plainDecimal(value: number): string | undefined {
  for (let digits = 0; digits <= 10; digits++) {
    const text = value.toFixed(digits)
    if (Number(text) === value) return text
  }
  return undefined
}
