import assert from 'node:assert/strict'
import {
  alpacaPrompt,
  chooseFormat,
  readExample,
  unusedColumnWarnings,
  type ColumnMapping,
  type DataFormat,
} from '../../../engine/data/formats.ts'
import type { Row } from '../../../engine/data/readRows.ts'

const row = (value: Record<string, unknown>, line = 1): Row => ({ value, file: 'd.jsonl', line })
const convert = (value: Record<string, unknown>, asked: DataFormat | 'auto' = 'auto', columns: ColumnMapping = {}) =>
  readExample(row(value), chooseFormat(row(value), asked, columns))
const choice = (value: Record<string, unknown>) => chooseFormat(row(value))

describe('formats', () => {
  it('are recognised by their columns, with the reason', () => {
    const turns = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b' },
    ]
    const told = [
      { from: 'human', value: 'a' },
      { from: 'gpt', value: 'b' },
    ]
    assert.deepEqual([choice({ text: 'a' }).format, choice({ text: 'a' }).reason], ['text', 'there is a column "text"'])
    assert.equal(choice({ instruction: 'a', input: '', output: 'b', text: 'whole' }).format, 'alpaca')
    assert.equal(choice({ prompt: 'a', completion: 'b' }).reason, 'there are the columns "prompt", "completion"')
    assert.equal(choice({ messages: turns }).format, 'chatml')
    assert.equal(choice({ conversations: told }).format, 'sharegpt')
    assert.deepEqual(
      [choice({ conversations: turns }).format, choice({ conversations: turns }).reason],
      ['chatml', 'the column "conversations" holds messages with "role" and "content"'],
    )
  })

  it('are not guessed from other columns, but taken from a mapping', () => {
    assert.throws(
      () => choice({ question: 'a', answer: 'b' }),
      /d\.jsonl:1: no known format has these columns: "question", "answer"/,
    )
    assert.equal(choice({ prompt: 'a', chosen: 'b', rejected: 'c' }).format, 'preference')
    assert.deepEqual(convert({ question: 'a', answer: 'b' }, 'auto', { prompt: 'question', completion: 'answer' }), {
      kind: 'pair',
      prompt: 'a',
      completion: 'b',
    })
    assert.deepEqual(convert({ body: 'a' }, 'text', { text: 'body' }), { kind: 'text', text: 'a' })
    assert.throws(
      () => convert({ body: 'a' }, 'alpaca'),
      /d\.jsonl:1: the row has no "instruction" and no "output", which format alpaca needs; its columns are "body"/,
    )
    assert.throws(() => convert({ messages: 'a' }, 'chatml'), /the row has no "messages"/)
  })

  it('tell of columns that would be lost: pairs of answers, marks, pictures', () => {
    const turns = [{ from: 'human', value: 'a' }]
    assert.equal(choice({ conversations: turns, chosen: {}, rejected: {} }).format, 'preference')
    const warnings = (value: Record<string, unknown>) => unusedColumnWarnings(row(value), choice(value))
    assert.deepEqual(warnings({ instruction: 'a', output: 'b', chosen: 'c', rejected: 'd' }), [
      'The columns "chosen" and "rejected" are not used by format alpaca.',
    ])
    assert.match(warnings({ conversations: turns, label: true })[0]!, /KTO data: the column "label" says which answers are good/)
    assert.match(warnings({ conversations: turns, images: ['1.jpg'] })[0]!, /the columns "images" are not used/)
    assert.deepEqual(warnings({ text: 'a', label: 3, id: 1 }), [])
  })

  it('give the Alpaca prompt of the Python library', () => {
    const paired =
      'Below is an instruction that describes a task, paired with an input that provides further context. ' +
      'Write a response that appropriately completes the request.\n\n'
    assert.equal(alpacaPrompt('do', 'this'), `${paired}### Instruction:\ndo\n\n### Input:\nthis\n\n### Response:\n`)
    assert.deepEqual(convert({ instruction: 'do', input: '', output: 'done' }), {
      kind: 'pair',
      prompt: `${paired}### Instruction:\ndo\n\n### Input:\n\n\n### Response:\n`,
      completion: 'done',
    })
    assert.deepEqual(
      convert({ instruction: 'do', input: null, output: 'done' }),
      convert({ instruction: 'do', input: '', output: 'done' }),
    )
    assert.equal(
      (convert({ instruction: 'do', output: 'done' }) as { prompt: string }).prompt,
      'Below is an instruction that describes a task. ' +
        'Write a response that appropriately completes the request.\n\n### Instruction:\ndo\n\n### Response:\n',
    )
  })

  it('bring ShareGPT into messages, with tools, calls and a system prompt', () => {
    const example = convert({
      system: 'Be brief.',
      tools: '[{"name": "f"}]',
      conversations: [
        { from: 'human', value: 'hi' },
        { from: 'function_call', value: '{"name": "f", "arguments": {}}' },
        { from: 'observation', value: '4' },
        { from: 'gpt', value: 'four' },
      ],
    })
    assert.deepEqual(example, {
      kind: 'chat',
      promptMessages: 0,
      tools: [{ name: 'f' }],
      messages: [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'hi' },
        { role: 'assistant', content: '', tool_calls: [{ type: 'function', function: { name: 'f', arguments: {} } }] },
        { role: 'tool', content: '4' },
        { role: 'assistant', content: 'four' },
      ],
    })
    assert.throws(() => convert({ conversations: [{ from: 'robot', value: 'x' }] }), /d\.jsonl:1: turn 1 is from "robot"/)
    assert.throws(() => convert({ conversations: [{ from: 'human', value: 3 }] }), /the "value" of turn 1 is a number/)
  })

  it('take text parts, conversations as prompt and completion, and name what is wrong in a row', () => {
    assert.deepEqual(
      (
        convert({
          messages: [
            {
              role: 'user',
              content: [
                { type: 'text', text: 'a' },
                { type: 'text', text: 'b' },
              ],
            },
          ],
        }) as { messages: unknown }
      ).messages,
      [{ role: 'user', content: 'ab' }],
    )
    const pair = convert({ prompt: [{ role: 'user', content: 'a' }], completion: [{ role: 'assistant', content: 'b' }] })
    assert.deepEqual(pair, {
      kind: 'chat',
      promptMessages: 1,
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    })
    const chosen = choice({ prompt: 'a', completion: 'b' })
    assert.throws(
      () => readExample(row({ prompt: 'a', completion: null }, 7), chosen),
      /d\.jsonl:7: the column "completion" is null, not text/,
    )
    assert.throws(
      () => readExample(row({ prompt: 'a', answer: 'b' }, 8), chosen),
      /d\.jsonl:8: the row has no "completion", which format completion needs; its columns are "prompt", "answer"/,
    )
    const chats = choice({ messages: [{ role: 'user', content: 'a' }] })
    assert.throws(() => readExample(row({ messages: [] }, 2), chats), /d\.jsonl:2: "messages" is an empty list/)
    assert.throws(() => readExample(row({ messages: [{ role: 'user' }] }, 2), chats), /message 1 of "messages" has no "content"/)
    assert.throws(() => readExample(row({ text: 'a' }, 2), chats), /d\.jsonl:2: the row has no "messages"/)
    assert.throws(
      () => readExample(row({ messages: [{ role: 'user', content: 'a' }], tools: '{' }, 2), chats),
      /the column "tools" is not JSON/,
    )
  })
})
