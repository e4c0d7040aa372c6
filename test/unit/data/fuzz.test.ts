import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { UnslothError } from '#shared/errors.ts'
import { ChatTemplate } from '../../../engine/data/chatTemplate.ts'
import { ChatRenderer } from '../../../engine/data/completionSpans.ts'
import { buildDataset } from '../../../engine/data/dataset.ts'
import { namedTemplates } from '../../../engine/data/namedTemplates.ts'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { readRows, readSourceRows } from '../../../engine/data/readRows.ts'
import { parseSentencePiece } from '../../../engine/data/sentencePiece.ts'
import { loadTokenizer } from '../../../engine/data/tokenizer.ts'
import { fixtures, fixtureTokenizer, folderWith, jsonl, removeFolders } from './support.ts'

const pieces = [
  '\n',
  '\r\n',
  '\r',
  ',',
  ';',
  '\t',
  '"',
  '""',
  '\\',
  '\\u00',
  '\\ud83d',
  '{',
  '}',
  '[',
  ']',
  '{"',
  '":',
  'null',
  'NaN',
  'true',
  '1e999',
  '-',
  '\ufeff',
  '\0',
  '{{',
  '}}',
  '{%',
  '%}',
  '{#',
  '#}',
  "'",
  ' | ',
  ' if ',
  ' else ',
  '(',
  ')',
  ' in ',
  '[0]',
  '.x',
  '~',
  '{% endfor %}',
  '{% endif %}',
  '{% for m in messages %}',
  '{%- set x = ',
  'loop.',
  'é',
  '🦥',
  '<s>',
  ' '.repeat(50),
  'a'.repeat(300),
].map((piece) => Buffer.from(piece))

/** The source with a few places changed, cut out, doubled or filled with what such files may hold. */
function mutate(source: Uint8Array, random: Xoshiro128): Buffer {
  let bytes: Buffer = Buffer.from(source)
  for (let count = 1 + random.below(3); count > 0; count--) {
    const at = random.below(bytes.length + 1)
    const insert = [
      Buffer.of(random.below(256)),
      pieces[random.below(pieces.length)]!,
      Buffer.alloc(0),
      bytes.subarray(random.below(bytes.length + 1)).subarray(0, random.below(100)),
    ][random.below(4)]!
    bytes = Buffer.concat([
      bytes.subarray(0, at),
      insert,
      bytes.subarray(Math.min(bytes.length, at + random.below(3) * random.below(12))),
    ])
  }
  return random.below(12) === 0 ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes
}

/** Runs a thing that either works or says what is wrong as users should see it. */
async function survives(code: string, what: () => Promise<unknown>, source: Uint8Array): Promise<boolean> {
  try {
    await what()
    return true
  } catch (error) {
    assert.ok(
      UnslothError.is(error),
      `${String((error as Error).stack)}\n${JSON.stringify(Buffer.from(source).toString('latin1').slice(0, 2000))}`,
    )
    assert.ok([code, 'DATA'].includes(error.code), `${error.code}: ${error.message}`)
    return false
  }
}

const chat = [
  {
    messages: [
      { role: 'user', content: 'one "two"\n' },
      { role: 'assistant', content: 'é 🦥' },
    ],
    tools: [{ name: 'f' }],
  },
  {
    messages: [
      { role: 'system', content: 's' },
      { role: 'user', content: [{ type: 'text', text: 'a' }] },
      { role: 'assistant', content: 'b', weight: 0 },
    ],
  },
]
const sources: Readonly<Record<string, string>> = {
  'd.jsonl': jsonl([...chat, ...chat]),
  'd.json': JSON.stringify({ info: 1, data: chat }, null, 1),
  'list.json': JSON.stringify(chat),
  'd.csv': 'text,note\n"a, ""b""\nc",1\n,\nx,"y"\n',
  'd.tsv': 'prompt\tcompletion\na\tb\n"c\td"\te\n',
  'd.txt': 'Once upon\n\na time.\n',
  'turns.jsonl': jsonl([
    {
      conversations: [
        { from: 'human', value: 'q' },
        { from: 'gpt', value: 'a' },
      ],
    },
  ]),
}

describe('damaged data', function () {
  after(removeFolders)

  it('files are read, or refused with file and line', async () => {
    const folder = folderWith({})
    const random = new Xoshiro128(21)
    let read = 0
    for (const [name, text] of Object.entries(sources)) {
      for (let round = 0; round < 60; round++) {
        const bytes = mutate(Buffer.from(text), random)
        const packed = random.below(6) === 0
        const path = join(folder, packed ? `${round}-${name}.gz` : `${round}-${name}`)
        const stored = packed ? gzipSync(bytes) : bytes
        writeFileSync(path, packed && random.below(3) === 0 ? mutate(stored, random) : stored)
        const rows: number[] = []
        const good = await survives(
          'DATA',
          async () => {
            for await (const { line } of readRows([path])) rows.push(line)
          },
          bytes,
        )
        if (good) read++
        assert.deepEqual(
          [...rows].sort((a, b) => a - b),
          rows,
        )
        // From any row on, it reads as from the beginning.
        const from = random.below(rows.length + 1)
        const later: number[] = []
        if (good) for await (const { line } of readSourceRows([path], { from, to: Infinity })) later.push(line)
        if (good) assert.deepEqual(later, rows.slice(from))
      }
    }
    assert.ok(read > 50)
  })

  it('rows become samples, or are counted as bad', async () => {
    const folder = folderWith({})
    const random = new Xoshiro128(22)
    const tokenizer = await fixtureTokenizer('qwen2.5')
    let samples = 0
    for (const name of ['d.jsonl', 'list.json', 'turns.jsonl', 'd.tsv', 'd.csv']) {
      for (let round = 0; round < 20; round++) {
        const bytes = mutate(Buffer.from(sources[name]!), random)
        const path = join(folder, `${round}-${name}`)
        writeFileSync(path, bytes)
        await survives(
          'DATA',
          async () => {
            const data = await buildDataset(
              { files: [path], maxSeqLength: 64, skipBadRows: true, trainOnCompletions: random.below(2) === 0, tooLong: 'split' },
              tokenizer,
            )
            samples += data.samples.length
            for (const { ids, labels } of data.samples)
              assert.ok(
                ids.length === labels.length && ids.length <= 64 && ids.every((id) => id >= 0 && id < tokenizer.vocabSize),
              )
          },
          bytes,
        )
      }
    }
    assert.ok(samples > 50)
  })

  it('chat templates are rendered, or refused', async () => {
    const random = new Xoshiro128(23)
    const tokens = { bosToken: '<s>', eosToken: '</s>', padToken: undefined, unkToken: undefined }
    const qwen = (await fixtureTokenizer('qwen2.5')).chatTemplates.get('default')!
    const templates = [qwen, qwen, ...Object.values(namedTemplates)]
    const messages = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b' },
    ]
    let rendered = 0
    for (let round = 0; round < 400; round++) {
      const source = mutate(Buffer.from(templates[round % templates.length]!), random).toString('utf8')
      const good = await survives(
        'TOKENIZER',
        () => {
          const template = new ChatTemplate(source, { name: 'test', tokens, limits: { milliseconds: 500, characters: 1e6 } })
          const { text, answers } = new ChatRenderer(template).render(messages)
          for (const { from, to } of answers) assert.ok(from >= 0 && from <= to && to <= text.length)
          return Promise.resolve()
        },
        Buffer.from(source),
      )
      if (good) rendered++
    }
    assert.ok(rendered > 50)
  })

  it('tokenizers are loaded, or refused', async () => {
    const random = new Xoshiro128(24)
    const source = readFileSync(join(fixtures, 'stories260k/tokenizer.json'))
    const config = Buffer.from(
      JSON.stringify({
        bos_token: '<s>',
        eos_token: { content: '</s>' },
        add_bos_token: true,
        chat_template: '{{ messages }}',
        added_tokens_decoder: { 2: { content: '</s>', special: true } },
      }),
    )
    let loaded = 0
    for (let round = 0; round < 80; round++) {
      const [first, second] = random.below(3) === 0 ? [source, mutate(config, random)] : [mutate(source, random), config]
      const folder = folderWith({ 'tokenizer.json': first, 'tokenizer_config.json': second })
      const good = await survives(
        'TOKENIZER',
        async () => {
          const tokenizer = await loadTokenizer(folder, { fix: random.below(2) === 0 })
          tokenizer.decode(tokenizer.encode('Once upon <s> é 🦥'))
        },
        Buffer.concat([second, first]),
      )
      if (good) loaded++
    }
    assert.ok(loaded > 3, String(loaded))
  })

  it('SentencePiece models are parsed, or refused', () => {
    const random = new Xoshiro128(25)
    const source = readFileSync(join(fixtures, 'sentencepiece/bpe.model'))
    let parsed = 0
    for (let round = 0; round < 300; round++) {
      try {
        parsed += parseSentencePiece(mutate(source, random)).pieces.length > 0 ? 1 : 0
      } catch (error) {
        assert.match((error as Error).message, /without an end|no pieces/)
      }
    }
    assert.ok(parsed > 0)
  })
})
