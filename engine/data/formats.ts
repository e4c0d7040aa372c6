import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { isMessages } from './chatTemplate.ts'
import { roleOf } from './examples.ts'
import { place, type Row } from './row.ts'

export { alpacaPrompt, readExample } from './examples.ts'

/** Shapes of rows, named as `data.format_type` names them. */
export type DataFormat = 'text' | 'alpaca' | 'completion' | 'chatml' | 'sharegpt' | 'preference' | 'raw'

/** Which column plays which part, where it is not the one of that name. */
export interface ColumnMapping {
  readonly text?: string
  readonly prompt?: string
  readonly completion?: string
  readonly instruction?: string
  readonly input?: string
  readonly output?: string
  readonly messages?: string
  readonly conversations?: string
  readonly tools?: string
  readonly system?: string
  readonly chosen?: string
  readonly rejected?: string
  readonly label?: string
}

/** The format of a data set and what it was told by. */
export interface FormatChoice {
  readonly format: DataFormat
  readonly reason: string
  readonly columns: ColumnMapping
  /** Column that tells good answers (true) from bad ones: KTO data. */
  readonly labelColumn?: string
  /** Names of the two keys of a turn, where they are neither "role" and "content" nor "from" and "value". */
  readonly turnKeys?: { readonly role: string; readonly content: string }
  /** The pattern that makes the question, see mergedPrompt.ts. */
  readonly mergedPrompt?: string
}

const mediaColumns = ['image', 'images', 'video', 'videos', 'audio', 'audios']

/** What the user should know about columns of the first row that are not used; one line each. */
export function unusedColumnWarnings({ value }: Row, { format, columns, labelColumn }: FormatChoice): string[] {
  const used = new Set<string>(Object.values(columns))
  const ignoredColumn = (name: string): boolean => Object.hasOwn(value, name) && !used.has(name)
  const media = mediaColumns.filter((name) => ignoredColumn(name) && value[name] !== null)
  return [
    ...(media.length > 0 ? [`Text only is trained: the columns ${list(media)} are not used.`] : []),
    ...(labelColumn === undefined
      ? []
      : [
          `These are KTO data: the column ${quote(labelColumn)} says which answers are good. Only those are learned; learning from bad ` +
            'ones is not available yet.',
        ]),
    ...(format === 'preference'
      ? ['These are preference pairs: the chosen answers are learned; learning from the rejected ones is not available yet.']
      : []),
    ...(isPreference(value) && format !== 'preference' && ignoredColumn('rejected')
      ? [`The columns "chosen" and "rejected" are not used by format ${format}.`]
      : []),
  ]
}

export const mapped = (columns: ColumnMapping, name: keyof ColumnMapping): string => columns[name] ?? name

const needed: Readonly<Record<DataFormat, readonly (keyof ColumnMapping)[]>> = {
  text: ['text'],
  alpaca: ['instruction', 'output'],
  completion: ['prompt', 'completion'],
  chatml: ['messages'],
  sharegpt: ['conversations'],
  preference: ['chosen', 'rejected'],
  raw: [],
}

/** Where raw text stands in rows that have columns. */
const rawColumns = ['text', 'content', 'message', 'body', 'description', 'prompt']

export const list = (names: readonly string[]): string =>
  names.length === 0 ? 'none' : names.map((name) => quote(name)).join(', ')

export const isTurns = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((turn) => isJsonObject(turn) && typeof turn.from === 'string' && 'value' in turn)

/** Columns of conversations, under either of the two usual names, by what stands in them. */
function conversationFormat(rows: readonly Row[], columns: ColumnMapping): FormatChoice | undefined {
  const row = rows[0]!
  for (const name of ['messages', 'conversations'] as const) {
    const column = mapped(columns, name)
    const value = row.value[column]
    if (isMessages(value))
      return {
        format: 'chatml',
        columns: { ...columns, messages: column },
        reason: `the column ${quote(column)} holds messages with "role" and "content"`,
      }
    if (isTurns(value))
      return {
        format: 'sharegpt',
        columns: { ...columns, conversations: column },
        reason: `the column ${quote(column)} holds turns with "from" and "value"`,
      }
  }
  const others = new Set<string>([
    'prompt',
    'completion',
    'chosen',
    'rejected',
    'tools',
    ...Object.values({ ...columns, conversations: '', messages: '' }),
  ])
  for (const column of new Set([
    mapped(columns, 'conversations'),
    mapped(columns, 'messages'),
    'texts',
    ...Object.keys(row.value),
  ])) {
    if (others.has(column)) continue
    const turnKeys = turnKeysOf(rows, column)
    if (turnKeys === undefined) continue
    return {
      format: 'sharegpt',
      columns: { ...columns, conversations: column },
      turnKeys,
      reason: `the column ${quote(column)} holds turns; ${quote(turnKeys.role)} says who speaks in them, as it takes the fewest values`,
    }
  }
  return undefined
}

/** Which of the two text keys of all turns says who speaks: the one with fewer different values, all of them known roles. */
function turnKeysOf(rows: readonly Row[], column: string): FormatChoice['turnKeys'] {
  const values = new Map<string, Set<string>>()
  for (const { value } of rows) {
    const turns = value[column]
    if (!Array.isArray(turns) || turns.length === 0) return undefined
    for (const turn of turns as unknown[]) {
      if (!isJsonObject(turn) || Object.keys(turn).length !== 2) return undefined
      for (const [key, text] of Object.entries(turn)) {
        if (typeof text !== 'string') return undefined
        values.set(key, (values.get(key) ?? new Set<string>()).add(text))
      }
    }
  }
  const keys = [...values].sort(([, a], [, b]) => a.size - b.size).map(([key]) => key)
  const [role, content] = keys
  if (keys.length !== 2 || role === undefined || content === undefined) return undefined
  return [...values.get(role)!].every((name) => roleOf(name) !== undefined) ? { role, content } : undefined
}

const isPreference = (value: Row['value']): boolean => Object.hasOwn(value, 'chosen') && Object.hasOwn(value, 'rejected')

function unknownFormat(row: Row): UnslothError {
  const seen = Object.keys(row.value)
  const hint =
    'Known are "text"; "prompt" and "completion"; "instruction" and "output"; "messages"; "conversations". ' +
    'Rename the columns, or say in the recipe which column is which.'
  return new UnslothError('DATA', `${place(row)}: no known format has these columns: ${list(seen)}.`, { hint })
}

/** KTO's column: true for good answers, false for bad ones. */
const labelColumnOf = ({ value }: Row, columns: ColumnMapping): string | undefined =>
  [mapped(columns, 'label'), 'kto_tag'].find((name) => typeof value[name] === 'boolean')

export interface FormatRequest {
  readonly asked?: DataFormat | 'auto' | 'kto' | undefined
  readonly columns?: ColumnMapping | undefined
  readonly mergedPrompt?: string | undefined
}

/** Recognises the format by the first rows. A format that was asked for is only checked. */
export function recogniseFormat(
  rows: readonly Row[],
  { asked = 'auto', columns = {}, mergedPrompt }: FormatRequest = {},
): FormatChoice {
  const row = rows[0]!
  if (mergedPrompt !== undefined)
    return { format: 'chatml', columns, mergedPrompt, reason: 'data.merged_prompt makes the questions' }
  if (asked === 'raw') return rawFormat(row, columns)
  const label = labelColumnOf(row, columns)
  if (asked === 'kto' && label === undefined)
    throw new UnslothError(
      'DATA',
      `${place(row)}: the row has no ${quote(mapped(columns, 'label'))} that is true or false, which format kto needs; ` +
        `its columns are ${list(Object.keys(row.value))}.`,
      { hint: 'Name the column in data.columns, for example label: thumbs_up.' },
    )
  const choice = named(rows, asked === 'kto' ? 'auto' : asked, columns)
  if (label === undefined || choice.format === 'text' || choice.format === 'preference') return choice
  return { ...choice, labelColumn: label, reason: `${choice.reason}; ${quote(label)} marks good and bad answers` }
}

/** Recognises the format by the columns of one row. */
export const chooseFormat = (row: Row, asked: DataFormat | 'auto' = 'auto', columns: ColumnMapping = {}): FormatChoice =>
  recogniseFormat([row], { asked, columns })

function rawFormat(row: Row, columns: ColumnMapping): FormatChoice {
  const column = [mapped(columns, 'text'), ...rawColumns].find((name) => typeof row.value[name] === 'string')
  if (column === undefined) throw missingColumns(row, [mapped(columns, 'text')], 'raw')
  return { format: 'raw', columns: { ...columns, text: column }, reason: `running text in ${quote(column)}, cut into windows` }
}

function named(rows: readonly Row[], asked: DataFormat | 'auto', columns: ColumnMapping): FormatChoice {
  const row = rows[0]!
  const has = (name: keyof ColumnMapping): boolean => Object.hasOwn(row.value, mapped(columns, name))
  if (asked === 'chatml' || asked === 'sharegpt') {
    const found = conversationFormat(rows, columns)
    if (found !== undefined) return { ...found, reason: `${asked} was asked for, and ${found.reason}` }
    throw missingColumns(row, [mapped(columns, 'messages')], asked)
  }
  if (asked !== 'auto') {
    const missing = needed[asked].filter((name) => !has(name)).map((name) => mapped(columns, name))
    if (missing.length === 0) return { format: asked, columns, reason: `${asked} was asked for` }
    throw missingColumns(row, missing, asked)
  }
  // A conversation beside "chosen" and "rejected" is only the prompt of a preference pair.
  const found = isPreference(row.value) ? undefined : conversationFormat(rows, columns)
  if (found !== undefined) return found
  for (const format of ['completion', 'alpaca', 'preference', 'text'] as const) {
    if (!needed[format].every(has)) continue
    const names = needed[format].map((name) => mapped(columns, name))
    const reason = names.length === 1 ? `there is a column ${list(names)}` : `there are the columns ${list(names)}`
    return { format, columns, reason }
  }
  throw unknownFormat(row)
}

export function missingColumns(row: Row, missing: readonly string[], format: DataFormat): UnslothError {
  const names = missing.map((name) => quote(name)).join(' and no ')
  return new UnslothError(
    'DATA',
    `${place(row)}: the row has no ${names}, which format ${format} needs; ` + `its columns are ${list(Object.keys(row.value))}.`,
    {
      hint:
        format === 'chatml' || format === 'sharegpt'
          ? 'A conversation is a list of objects, {"role": …, "content": …} or {"from": …, "value": …}.'
          : 'Add the column, choose another data.format_type, or say in the recipe which column is which.',
    },
  )
}
