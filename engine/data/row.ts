import { UnslothError } from '#shared/errors.ts'
import { isJsonObject, parseJson } from '../io/jsonText.ts'

/** One row of a data set and where it stands. */
export interface Row {
  readonly value: Readonly<Record<string, unknown>>
  readonly file: string
  /** Counts from 1. In Parquet, whose files have no lines, the number of the row. */
  readonly line: number
}

/** What is wrong with a row, in a form that goes from thread to thread. */
export interface RowProblem {
  readonly message: string
  readonly hint: string
}

/** A row as it was read: parsed, JSON text, or why it could not be read. */
export type SourceRow = Pick<Row, 'file' | 'line'> &
  ({ readonly value: Row['value'] } | { readonly text: string } | { readonly problem: RowProblem })

/** Where a row stands, for messages. */
export const place = ({ file, line }: Pick<Row, 'file' | 'line'>): string => `${file}:${line}`

/** No single row is that long; a file without line ends would otherwise fill the memory. */
export const rowLimit = 256 * 1024 * 1024

/** What is wrong in a line of a data set. */
export const dataError = (file: string, line: number, what: string, hint: string, cause?: unknown): UnslothError =>
  new UnslothError('DATA', `${place({ file, line })}: ${what}.`, { hint, cause })

export const utf8Hint = 'Save the file as UTF-8.'

/** One row from its text. JSON.parse is fast; the careful parser takes what Python writes (NaN) and tells what is wrong. */
function parseText(text: string, file: string, line: number): Row {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    try {
      value = parseJson(text, { file, duplicateKeys: 'last', python: true })
    } catch (error) {
      const found = /: line (\d+), column (\d+): (.*?)\.?$/s.exec((error as Error).message)
      const at = found === null ? '' : `, column ${found[2]}`
      throw dataError(
        file,
        line + (found === null ? 0 : Number(found[1]) - 1),
        `${found?.[3] ?? (error as Error).message}${at}`,
        'Each row is one JSON object. Correct or remove this one, or set data.skip_bad_rows.',
        error,
      )
    }
  }
  if (!isJsonObject(value)) {
    const kind = Array.isArray(value) ? 'a list' : value === null ? 'null' : `a ${typeof value}`
    throw dataError(file, line, `the row is ${kind}, not an object`, 'Each row is one JSON object such as {"text": "…"}.')
  }
  return { value, file, line }
}

/** The row, parsed; what cannot be read is a DATA error naming file and line. */
export function parseRow(source: SourceRow): Row {
  if ('problem' in source) throw dataError(source.file, source.line, source.problem.message, source.problem.hint)
  if ('value' in source) return source
  return parseText(source.text, source.file, source.line)
}
