import { UnslothError } from '#shared/errors.ts'
import type { ChatMessage } from './chatTemplate.ts'
import { readExample, type Example } from './examples.ts'
import type { FormatChoice } from './formats.ts'
import { permutation } from './random.ts'
import { parseRow, place, type Row, type SourceRow } from './row.ts'

/** Rows among which others are chosen: enough to mix well, and what bounds the memory. */
const windowRows = 4096

/** Conversations whose rows are joined are messages from then on. */
export const extendedFormat = (format: FormatChoice, turns: number): FormatChoice => ({
  format: 'chatml',
  columns: {},
  reason: `${format.reason}; ${turns} rows at a time are one conversation`,
})

function messagesOf(example: Example, row: Row): readonly ChatMessage[] {
  if (example.kind === 'chat') return example.messages
  if (example.kind === 'pair')
    return [
      { role: 'user', content: example.prompt },
      { role: 'assistant', content: example.completion },
    ]
  throw new UnslothError('DATA', `${place(row)}: running text cannot be joined to conversations.`, {
    hint: 'data.conversation_extension is for questions with answers; remove it, or choose another data.format_type.',
  })
}

/**
 * Makes conversations of `turns` rows each, as `to_sharegpt` does with `conversation_extension`: each row, then others chosen by
 * the seed, so that a model trained on single questions learns to go on. There are as many conversations as rows. A system message
 * stays only at the beginning. Rows that cannot be read stay what they are.
 */
export async function* extendConversations(
  rows: AsyncIterable<SourceRow>,
  format: FormatChoice,
  turns: number,
  seed: number,
): AsyncGenerator<SourceRow> {
  let window: SourceRow[] = []
  let stream = 0
  const flush = function* (): Generator<SourceRow> {
    const read = window.map((source) => {
      try {
        const row = parseRow(source)
        return { source, messages: messagesOf(readExample(row, format), row) }
      } catch (error) {
        if (!UnslothError.is(error, 'DATA')) throw error
        return { source, error }
      }
    })
    const good = read.flatMap((row) => (row.messages === undefined ? [] : [row.messages]))
    const orders = Array.from({ length: turns - 1 }, () => permutation(good.length, seed, stream++))
    let index = 0
    for (const {
      source: { file, line },
      messages,
      error,
    } of read) {
      if (messages === undefined) {
        yield {
          file,
          line,
          problem: {
            message: error.message.replace(`${place({ file, line })}: `, '').replace(/\.$/, ''),
            hint: error.hint ?? '',
          },
        }
        continue
      }
      const more = orders.flatMap((order) => good[order[index]!]!.filter(({ role }) => role !== 'system'))
      index++
      yield { file, line, value: { messages: [...messages, ...more] } }
    }
    window = []
  }
  for await (const row of rows) {
    window.push(row)
    if (window.length === windowRows) yield* flush()
  }
  yield* flush()
}
