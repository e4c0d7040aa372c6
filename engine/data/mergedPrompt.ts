import { UnslothError } from '#shared/errors.ts'
import { quote } from '../io/printable.ts'
import { place, type Row } from './row.ts'

const column = /\{([^{}]+)\}/g

function valueOf(row: Row, name: string): string {
  if (!Object.hasOwn(row.value, name))
    throw new UnslothError(
      'DATA',
      `${place(row)}: the row has no ${quote(name)}, which data.merged_prompt names; ` +
        `its columns are ${Object.keys(row.value)
          .map((key) => quote(key))
          .join(', ')}.`,
      { hint: 'Correct the name in the braces.' },
    )
  const value = row.value[name]
  return value === null || value === undefined ? '' : typeof value === 'string' ? value : JSON.stringify(value)
}

/**
 * The columns of a row put into a pattern as `to_sharegpt` does: `{column}` becomes the column; a part in `[[…]]` is left out
 * when any column in it is empty.
 */
export function mergeColumns(row: Row, pattern: string): string {
  const fill = (text: string): string => text.replace(column, (_, name: string) => valueOf(row, name))
  const parts = pattern.split(/\[\[(.*?)\]\]/s)
  return parts
    .map((part, index) => {
      const optional = index % 2 === 1
      if (optional && [...part.matchAll(column)].some(([, name]) => valueOf(row, name!) === '')) return ''
      return fill(part)
    })
    .join('')
}
