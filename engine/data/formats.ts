import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { isMessages, type ChatMessage } from './chatTemplate.ts'
import { place, type Row } from './readRows.ts'

/** Shapes of rows, named as `data.format_type` names them. */
export type DataFormat = 'text' | 'alpaca' | 'completion' | 'chatml' | 'sharegpt'

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
}

/** A row brought into one of three forms. */
export type Example =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'pair'; readonly prompt: string; readonly completion: string }
  /** `promptMessages`: so many of the messages are the prompt of a `prompt`/`completion` row. */
  | {
    readonly kind: 'chat'
    readonly messages: readonly ChatMessage[]
    readonly tools?: readonly unknown[]
    readonly promptMessages: number
  }

/** The format of a data set and what it was told by. */
export interface FormatChoice {
  readonly format: DataFormat
  readonly reason: string
  readonly columns: ColumnMapping
}

const mediaColumns = ['image', 'images', 'video', 'videos', 'audio', 'audios']

/** What the user should know about columns of the first row that are not used; one line each. */
export function unusedColumnWarnings({ value }: Row, { format, columns }: FormatChoice): string[] {
  const used = new Set<string>(Object.values(columns))
  const ignoredColumn = (name: string): boolean => Object.hasOwn(value, name) && !used.has(name)
  const media = mediaColumns.filter((name) => ignoredColumn(name) && value[name] !== null)
  return [
    ...(media.length > 0 ? [`Text only is trained: the columns ${list(media)} are not used.`] : []),
    ...['label', 'kto_tag'].filter((name) => ignoredColumn(name) && typeof value[name] === 'boolean')
      .map((name) => `The column ${quote(name)} says which answers are good; here all of them are trained alike.`),
    ...(isPreference(value) && ignoredColumn('rejected')
      ? [`The columns "chosen" and "rejected" are not used by format ${format}.`]
      : []),
  ]
}

const mapped = (columns: ColumnMapping, name: keyof ColumnMapping): string => columns[name] ?? name

const needed: Readonly<Record<DataFormat, readonly (keyof ColumnMapping)[]>> = {
  text: ['text'],
  alpaca: ['instruction', 'output'],
  completion: ['prompt', 'completion'],
  chatml: ['messages'],
  sharegpt: ['conversations'],
}

const list = (names: readonly string[]): string => (names.length === 0 ? 'none' : names.map((name) => quote(name)).join(', '))

const isTurns = (value: unknown): boolean =>
  Array.isArray(value) && value.length > 0
  && value.every((turn) => isJsonObject(turn) && typeof turn.from === 'string' && 'value' in turn)

/** Columns of conversations, under either of the two usual names, by what stands in them. */
function conversationFormat(row: Row, columns: ColumnMapping): FormatChoice | undefined {
  for (const name of ['messages', 'conversations'] as const) {
    const column = mapped(columns, name)
    const value = row.value[column]
    if (isMessages(value))
      return {
        format: 'chatml', columns: { ...columns, messages: column },
        reason: `the column ${quote(column)} holds messages with "role" and "content"`,
      }
    if (isTurns(value))
      return {
        format: 'sharegpt', columns: { ...columns, conversations: column },
        reason: `the column ${quote(column)} holds turns with "from" and "value"`,
      }
  }
  return undefined
}

const isPreference = (value: Row['value']): boolean => Object.hasOwn(value, 'chosen') && Object.hasOwn(value, 'rejected')

function unknownFormat(row: Row): UnslothError {
  const seen = Object.keys(row.value)
  const hint = isPreference(row.value)
    ? 'These are preference pairs; this kind of training takes one answer: name the columns, for example completion: chosen.'
    : 'Known are "text"; "prompt" and "completion"; "instruction" and "output"; "messages"; "conversations". '
      + 'Rename the columns, or say in the recipe which column is which.'
  return new UnslothError('DATA', `${place(row)}: no known format has these columns: ${list(seen)}.`, { hint })
}

/** Recognises the format by the columns of the first row. A format that was asked for is only checked. */
export function chooseFormat(row: Row, asked: DataFormat | 'auto' = 'auto', columns: ColumnMapping = {}): FormatChoice {
  const has = (name: keyof ColumnMapping): boolean => Object.hasOwn(row.value, mapped(columns, name))
  if (asked === 'chatml' || asked === 'sharegpt') {
    const found = conversationFormat(row, columns)
    if (found !== undefined) return { ...found, reason: `${asked} was asked for, and ${found.reason}` }
  } else if (asked !== 'auto') {
    const missing = needed[asked].filter((name) => !has(name)).map((name) => mapped(columns, name))
    if (missing.length === 0) return { format: asked, columns, reason: `${asked} was asked for` }
    throw missingColumns(row, missing, asked)
  } else {
    // A conversation beside "chosen" and "rejected" is only the prompt of a preference pair.
    const found = isPreference(row.value) ? undefined : conversationFormat(row, columns)
    if (found !== undefined) return found
    for (const format of ['completion', 'alpaca', 'text'] as const) {
      if (!needed[format].every(has)) continue
      const names = needed[format].map((name) => mapped(columns, name))
      const reason = names.length === 1 ? `there is a column ${list(names)}` : `there are the columns ${list(names)}`
      return { format, columns, reason }
    }
    throw unknownFormat(row)
  }
  throw missingColumns(row, [mapped(columns, 'messages')], asked)
}

function missingColumns(row: Row, missing: readonly string[], format: DataFormat): UnslothError {
  const names = missing.map((name) => quote(name)).join(' and no ')
  return new UnslothError('DATA', `${place(row)}: the row has no ${names}, which format ${format} needs; `
    + `its columns are ${list(Object.keys(row.value))}.`, {
    hint: format === 'chatml' || format === 'sharegpt'
      ? 'A conversation is a list of objects, {"role": …, "content": …} or {"from": …, "value": …}.'
      : 'Add the column, choose another data.format_type, or say in the recipe which column is which.',
  })
}

const kindOf = (value: unknown): string => (
  Array.isArray(value) ? 'a list' : value === null ? 'null' : typeof value === 'object' ? 'an object' : `a ${typeof value}`
)

function textOf(row: Row, column: string, format: DataFormat): string {
  if (!Object.hasOwn(row.value, column)) throw missingColumns(row, [column], format)
  const value = row.value[column]
  if (typeof value === 'string') return value
  throw new UnslothError(
    'DATA', `${place(row)}: the column ${quote(column)} is ${kindOf(value)}, not text.`,
    { hint: 'Write it as text in quotes, or remove the row.' },
  )
}

/**
 * The Alpaca prompt; the answer and EOS follow it. As the Python library has it, the input section stays when the input is
 * empty; Stanford's shorter prompt is for data without such a column.
 */
export function alpacaPrompt(instruction: string, input?: string): string {
  const head = 'Below is an instruction that describes a task'
  const request = 'Write a response that appropriately completes the request.\n\n'
  return input === undefined
    ? `${head}. ${request}### Instruction:\n${instruction}\n\n### Response:\n`
    : `${head}, paired with an input that provides further context. ${request}`
      + `### Instruction:\n${instruction}\n\n### Input:\n${input}\n\n### Response:\n`
}

/** Content given as a list of text parts as one text; other content as it is. */
function plainContent(content: unknown): unknown {
  if (!Array.isArray(content)) return content
  const texts = content.map(
    (part: unknown) => (isJsonObject(part) && part.type === 'text' && typeof part.text === 'string' ? part.text : undefined),
  )
  return texts.length > 0 && texts.every((text) => text !== undefined) ? texts.join('') : content
}

const emptyOr = (value: unknown, other: string): string => (Array.isArray(value) && value.length === 0 ? 'an empty list' : other)

function checkedMessages(row: Row, column: string, value: unknown): ChatMessage[] {
  if (!isMessages(value))
    throw new UnslothError('DATA', `${place(row)}: ${quote(column)} is ${emptyOr(value, 'not a list of messages')}.`, {
      hint: 'A conversation is a list of objects with "role" and "content". Correct or remove the row.',
    })
  return value.map((message, index) => {
    if (message.content === undefined && message.tool_calls === undefined)
      throw new UnslothError(
        'DATA', `${place(row)}: message ${index + 1} of ${quote(column)} has no "content".`,
        { hint: 'Correct or remove the row.' },
      )
    return { ...message, content: plainContent(message.content ?? '') }
  })
}

const shareGptRoles: Readonly<Record<string, string>> = {
  system: 'system', human: 'user', user: 'user', input: 'user', gpt: 'assistant', chatgpt: 'assistant', assistant: 'assistant',
  model: 'assistant', output: 'assistant', tool: 'tool', observation: 'tool', function_response: 'tool',
  function_call: 'function_call',
}

/** A call written as JSON text, in the form that templates take; other text stays the content of the answer. */
function functionCall(text: string): ChatMessage {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return { role: 'assistant', content: text }
  }
  const calls = (Array.isArray(value) ? value : [value]) as unknown[]
  if (!calls.every((call) => isJsonObject(call) && typeof call.name === 'string')) return { role: 'assistant', content: text }
  return { role: 'assistant', content: '', tool_calls: calls.map((call) => ({ type: 'function', function: call })) }
}

function shareGptMessages(row: Row, column: string): ChatMessage[] {
  const turns = row.value[column]
  if (isMessages(turns)) return checkedMessages(row, column, turns)
  if (!isTurns(turns)) {
    const what = emptyOr(turns, 'not a list of turns with "from" and "value"')
    throw new UnslothError('DATA', `${place(row)}: ${quote(column)} is ${what}.`, {
      hint: 'Correct or remove the row.',
    })
  }
  return (turns as { from: string; value: unknown }[]).map(({ from, value }, index) => {
    const role = Object.hasOwn(shareGptRoles, from.toLowerCase()) ? shareGptRoles[from.toLowerCase()] : undefined
    if (role === undefined)
      throw new UnslothError(
        'DATA', `${place(row)}: turn ${index + 1} is from ${quote(from)}, which is no known role.`,
        { hint: `Known are ${list(Object.keys(shareGptRoles))}.` },
      )
    if (typeof value !== 'string') throw new UnslothError(
      'DATA', `${place(row)}: the "value" of turn ${index + 1} is ${kindOf(value)}, not text.`,
      { hint: 'Correct or remove the row.' },
    )
    return role === 'function_call' ? functionCall(value) : { role, content: value }
  })
}

/** Tools of a row: a list, or the JSON text of one. */
function toolsOf(row: Row, columns: ColumnMapping): readonly unknown[] | undefined {
  const column = mapped(columns, 'tools')
  let value = row.value[column]
  if (value === undefined || value === null || value === '') return undefined
  if (typeof value === 'string') {
    try {
      value = JSON.parse(value)
    } catch (error) {
      throw new UnslothError(
        'DATA', `${place(row)}: the column ${quote(column)} is not JSON: ${(error as Error).message}.`,
        { hint: 'It holds a list of tools.', cause: error },
      )
    }
  }
  if (!Array.isArray(value)) throw new UnslothError(
    'DATA', `${place(row)}: the column ${quote(column)} is ${kindOf(value)}, not a list of tools.`,
    { hint: 'Correct or remove it.' },
  )
  return value.length === 0 ? undefined : (value as unknown[])
}

function chat(row: Row, columns: ColumnMapping, messages: readonly ChatMessage[], promptMessages = 0): Example {
  const system = row.value[mapped(columns, 'system')]
  const missing = typeof system === 'string' && system !== '' && messages[0]?.role !== 'system'
  const tools = toolsOf(row, columns)
  return {
    kind: 'chat',
    messages: missing ? [{ role: 'system', content: system }, ...messages] : messages,
    promptMessages: promptMessages > 0 && missing ? promptMessages + 1 : promptMessages,
    ...(tools === undefined ? {} : { tools }),
  }
}

/** One row in the chosen format; what does not fit is a DATA error naming file, line and column. */
export function readExample(row: Row, { format, columns }: FormatChoice): Example {
  const column = (name: keyof ColumnMapping): string => mapped(columns, name)
  const text = (name: keyof ColumnMapping): string => textOf(row, column(name), format)
  switch (format) {
    case 'text':
      return { kind: 'text', text: text('text') }
    case 'alpaca': {
      const given = row.value[column('input')]
      const input = given === undefined ? undefined : given === null ? '' : text('input')
      return { kind: 'pair', prompt: alpacaPrompt(text('instruction'), input), completion: text('output') }
    }
    case 'completion': {
      const [prompt, completion] = [row.value[column('prompt')], row.value[column('completion')]]
      if (!Array.isArray(prompt) || !Array.isArray(completion))
        return { kind: 'pair', prompt: text('prompt'), completion: text('completion') }
      const before = checkedMessages(row, column('prompt'), prompt)
      return chat(row, columns, [...before, ...checkedMessages(row, column('completion'), completion)], before.length)
    }
    case 'chatml': {
      const value = row.value[column('messages')]
      if (value === undefined) throw missingColumns(row, [column('messages')], format)
      return chat(row, columns, checkedMessages(row, column('messages'), value))
    }
    case 'sharegpt':
      if (row.value[column('conversations')] === undefined) throw missingColumns(row, [column('conversations')], format)
      return chat(row, columns, shareGptMessages(row, column('conversations')))
  }
}
