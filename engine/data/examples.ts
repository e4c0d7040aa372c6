import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { isMessages, type ChatMessage } from './chatTemplate.ts'
import { isTurns, list, mapped, missingColumns, type ColumnMapping, type DataFormat, type FormatChoice } from './formats.ts'
import { mergeColumns } from './mergedPrompt.ts'
import { place, type Row } from './row.ts'

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

const kindOf = (value: unknown): string =>
  Array.isArray(value) ? 'a list' : value === null ? 'null' : typeof value === 'object' ? 'an object' : `a ${typeof value}`

function textOf(row: Row, column: string, format: DataFormat): string {
  if (!Object.hasOwn(row.value, column)) throw missingColumns(row, [column], format)
  const value = row.value[column]
  if (typeof value === 'string') return value
  throw new UnslothError('DATA', `${place(row)}: the column ${quote(column)} is ${kindOf(value)}, not text.`, {
    hint: 'Write it as text in quotes, or remove the row.',
  })
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
    : `${head}, paired with an input that provides further context. ${request}` +
        `### Instruction:\n${instruction}\n\n### Input:\n${input}\n\n### Response:\n`
}

/** Content given as a list of text parts as one text; other content as it is. */
function plainContent(content: unknown): unknown {
  if (!Array.isArray(content)) return content
  const texts = content.map((part: unknown) =>
    isJsonObject(part) && part.type === 'text' && typeof part.text === 'string' ? part.text : undefined,
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
      throw new UnslothError('DATA', `${place(row)}: message ${index + 1} of ${quote(column)} has no "content".`, {
        hint: 'Correct or remove the row.',
      })
    return { ...message, content: plainContent(message.content ?? '') }
  })
}

/** Other names of the roles, in lower case. */
const shareGptRoles: Readonly<Record<string, string>> = {
  system: 'system',
  human: 'user',
  user: 'user',
  input: 'user',
  gpt: 'assistant',
  chatgpt: 'assistant',
  assistant: 'assistant',
  model: 'assistant',
  output: 'assistant',
  tool: 'tool',
  observation: 'tool',
  function_response: 'tool',
  function_call: 'function_call',
  bot: 'assistant',
  'tool-response': 'tool',
  function: 'tool',
  developer: 'developer',
  instruction: 'user',
}

/** The role that a name in the data means, whatever its case. */
export const roleOf = (name: string): string | undefined => {
  const key = name.trim().toLowerCase()
  return Object.hasOwn(shareGptRoles, key) ? shareGptRoles[key] : undefined
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

function shareGptMessages(row: Row, column: string, keys?: FormatChoice['turnKeys']): ChatMessage[] {
  const given = row.value[column]
  const turns =
    keys === undefined || !Array.isArray(given)
      ? given
      : given.map((turn: unknown) => (isJsonObject(turn) ? { from: turn[keys.role], value: turn[keys.content] } : turn))
  if (isMessages(turns)) return checkedMessages(row, column, turns)
  if (!isTurns(turns)) {
    const what = emptyOr(turns, 'not a list of turns with "from" and "value"')
    throw new UnslothError('DATA', `${place(row)}: ${quote(column)} is ${what}.`, { hint: 'Correct or remove the row.' })
  }
  return (turns as { from: string; value: unknown }[]).map(({ from, value }, index) => {
    const role = roleOf(from)
    if (role === undefined)
      throw new UnslothError('DATA', `${place(row)}: turn ${index + 1} is from ${quote(from)}, which is no known role.`, {
        hint: `Known are ${list(Object.keys(shareGptRoles))}.`,
      })
    if (typeof value !== 'string')
      throw new UnslothError('DATA', `${place(row)}: the "value" of turn ${index + 1} is ${kindOf(value)}, not text.`, {
        hint: 'Correct or remove the row.',
      })
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
      throw new UnslothError('DATA', `${place(row)}: the column ${quote(column)} is not JSON: ${(error as Error).message}.`, {
        hint: 'It holds a list of tools.',
        cause: error,
      })
    }
  }
  if (!Array.isArray(value))
    throw new UnslothError('DATA', `${place(row)}: the column ${quote(column)} is ${kindOf(value)}, not a list of tools.`, {
      hint: 'Correct or remove it.',
    })
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

/** What comes before the last answer in both texts: the dialogue of Anthropic's preference data, else what they share. */
function sharedPrompt(chosen: string, rejected: string): number {
  const marker = '\n\nAssistant:'
  const last = chosen.lastIndexOf(marker)
  if (last >= 0 && rejected.startsWith(chosen.slice(0, last + marker.length))) return last + marker.length
  let shared = 0
  while (shared < chosen.length && chosen[shared] === rejected[shared]) shared++
  return shared
}

/** The prompt and the chosen answer of a preference pair, in any of the shapes that TRL and LLaMA-Factory know. */
function preference(row: Row, choice: FormatChoice): Example {
  const { columns } = choice
  const [chosenColumn, rejectedColumn, promptColumn] = [
    mapped(columns, 'chosen'),
    mapped(columns, 'rejected'),
    mapped(columns, 'prompt'),
  ]
  const [chosen, prompt] = [row.value[chosenColumn], row.value[promptColumn]]
  if (chosen === undefined) throw missingColumns(row, [chosenColumn], 'preference')
  const asTurns = (column: string): ChatMessage[] => {
    const value = row.value[column]
    const turns = isJsonObject(value) ? [value] : value
    return shareGptMessages({ ...row, value: { [column]: turns } }, column)
  }
  if (typeof chosen !== 'string') {
    const answer = asTurns(chosenColumn)
    const conversation = (['conversations', 'messages'] as const)
      .map((name) => mapped(columns, name))
      .find((name) => Array.isArray(row.value[name]))
    const before = Array.isArray(prompt)
      ? asTurns(promptColumn)
      : typeof prompt === 'string' && answer.length === 1
        ? [{ role: 'user', content: prompt }]
        : conversation === undefined
          ? []
          : asTurns(conversation)
    const messages = [...before, ...answer]
    return chat(row, columns, messages, Math.max(before.length, messages.length - 1))
  }
  if (typeof prompt === 'string') return { kind: 'pair', prompt, completion: chosen }
  if (Object.hasOwn(row.value, mapped(columns, 'instruction'))) {
    const example = readExample(row, { ...choice, format: 'alpaca', columns: { ...columns, output: chosenColumn } })
    return example
  }
  const shared = sharedPrompt(chosen, textOf(row, rejectedColumn, 'preference'))
  return { kind: 'pair', prompt: chosen.slice(0, shared), completion: chosen.slice(shared) }
}

/** Whether the answer of a row of KTO data is a good one; others are not learned. */
export const isDesired = ({ value }: Row, { labelColumn }: FormatChoice): boolean =>
  labelColumn === undefined || value[labelColumn] !== false

/** One row in the chosen format; what does not fit is a DATA error naming file, line and column. */
export function readExample(row: Row, choice: FormatChoice): Example {
  const { format, columns, mergedPrompt } = choice
  const column = (name: keyof ColumnMapping): string => mapped(columns, name)
  const text = (name: keyof ColumnMapping): string => textOf(row, column(name), format)
  if (mergedPrompt !== undefined)
    return chat(row, columns, [
      { role: 'user', content: mergeColumns(row, mergedPrompt) },
      { role: 'assistant', content: text('output') },
    ])
  switch (format) {
    case 'raw':
    case 'text':
      return { kind: 'text', text: text('text') }
    case 'preference':
      return preference(row, choice)
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
      return chat(row, columns, shareGptMessages(row, column('conversations'), choice.turnKeys))
  }
}
