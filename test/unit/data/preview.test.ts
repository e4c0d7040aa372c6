import assert from 'node:assert/strict'
import { sampleLines, summaryLines } from '../../../engine/cli/commands/data.ts'
import { buildDataset } from '../../../engine/data/dataset.ts'
import { previewDataset, previewTokens, spread } from '../../../engine/data/preview.ts'
import { PreviewCache } from '../../../engine/rpc/previewData.ts'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sampleProblems } from '../../../engine/data/sampleProblems.ts'
import type { Tokenizer } from '../../../engine/data/tokenizer.ts'
import { fileWith, fixtures, fixtureTokenizer, jsonl, removeFolders } from './support.ts'

const rows = [
  {
    messages: [
      { role: 'user', content: 'one' },
      { role: 'assistant', content: 'first 🙂' },
    ],
  },
  {
    messages: [
      { role: 'user', content: 'two' },
      { role: 'assistant', content: 'second' },
    ],
  },
]

describe('preview of data', () => {
  after(removeFolders)

  it('shows each token with what the model does with it; the texts joined are the text', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const { samples } = await buildDataset(
      { files: [fileWith('d.jsonl', jsonl(rows))], maxSeqLength: 512, trainOnCompletions: true },
      tokenizer,
    )
    const tokens = previewTokens(samples[0]!, tokenizer)
    assert.equal(tokens.map(({ text }) => text).join(''), tokenizer.decode(samples[0]!.ids))
    assert.equal(
      tokens
        .filter(({ trained }) => trained)
        .map(({ text }) => text)
        .join(''),
      'first 🙂<|im_end|>\n',
    )
    assert.deepEqual(
      tokens
        .filter(({ special }) => special)
        .map(({ text }) => text)
        .slice(0, 2),
      ['<|im_start|>', '<|im_end|>'],
    )
    assert.deepEqual(
      tokens.map(({ id }) => id),
      [...samples[0]!.ids],
    )
  })

  it('counts all of the data, and prints samples with marks or colours', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const data = await buildDataset(
      { files: [fileWith('d.jsonl', jsonl(rows))], maxSeqLength: 512, trainOnCompletions: true },
      tokenizer,
    )
    const preview = previewDataset(data, tokenizer, { samples: spread(1, 2), maxSeqLength: 512 })
    assert.deepEqual([preview.samples, preview.rows.rows, preview.packing.rows, preview.shown.length], [2, 2, 1, 1])
    assert.equal(preview.packing.efficiency, preview.tokens / 512)
    assert.match(summaryLines(preview).join('\n'), /^format {4}chatml: the column "messages" holds.*\nsamples {3}2 of 2 rows\n/)
    const [, head, body] = sampleLines(preview.shown[0]!, false)
    assert.match(head!, /sample 1 · .*d\.jsonl:1 · \d+ tokens, \d+ trained$/)
    assert.match(body!, /<\|im_start\|>assistant\n\[\[first 🙂<\|im_end\|>\n\]\]$/)
    assert.ok(sampleLines(preview.shown[0]!, true)[2]!.includes('\u001b[32mfirst'))
    const hostile = { ...preview.shown[0]!, tokens: [{ id: 1, text: 'a\u001b[2Jb', trained: true, special: false }] }
    assert.equal(sampleLines(hostile, false)[2], '[[a\\x1b[2Jb]]')
  })

  it('answers the editor: pages, search, problems of recipe and data', async () => {
    const file = fileWith('d.jsonl', jsonl(rows))
    const recipe = (path: string) =>
      `model: ${join(fixtures, 'qwen2.5')}\ndata:\n  local_dataset: ${path}\ntraining:\n  train_on_completions: true\n`
    const cache = new PreviewCache()
    const context = { signal: new AbortController().signal, notify: () => undefined }
    const answer = await cache.preview({ recipe: recipe(file), from: 1, count: 5 }, context)
    assert.deepEqual([answer.preview?.shown.map(({ number }) => number), answer.preview?.samples, answer.more], [[2], 2, false])
    assert.deepEqual(
      (await cache.preview({ recipe: recipe(file), search: 'SECOND' }, context)).preview?.shown.map(({ number }) => number),
      [2],
    )
    const first = await cache.preview({ recipe: recipe(file), rows: 1 }, context)
    assert.deepEqual([first.preview?.samples, first.more], [1, true])
    const second = await cache.preview({ recipe: recipe(file), rows: 1, firstRow: 1 }, context)
    assert.deepEqual([second.preview?.shown[0]?.line, second.more], [2, false])
    const broken = await cache.preview({ recipe: recipe(fileWith('bad.jsonl', '{"a"')) }, context)
    assert.match(broken.diagnostics.at(-1)!.message, /bad\.jsonl:1/)
    assert.equal((await cache.preview({ recipe: 'model: [' }, context)).preview, undefined)
  })

  it('orders and filters samples, and says what is wrong with each', async () => {
    const folder = join(fixtures, 'qwen2.5')
    const long = 'word '.repeat(200)
    const text = [
      ...rows,
      {
        messages: [
          { role: 'user', content: 'three' },
          { role: 'assistant', content: long },
        ],
      },
    ]
    const file = fileWith('d.jsonl', jsonl(text))
    const recipe = `model: ${folder}\ndata:\n  local_dataset: ${file}\ntraining:\n  train_on_completions: true\n  max_seq_length: 64\n`
    const cache = new PreviewCache()
    const ask = async (params: object) => {
      const { preview, matching } = await cache.preview({ recipe, ...params }, { signal: new AbortController().signal })
      return {
        numbers: preview!.shown.map(({ number }) => number),
        problems: preview!.shown.flatMap(({ problems }) => problems),
        matching,
      }
    }
    assert.deepEqual((await ask({ order: 'longest', count: 1 })).numbers, [3])
    assert.deepEqual((await ask({ order: 'leastTrained' })).numbers.at(-1), 3)
    const full = await ask({ filter: 'full' })
    assert.deepEqual([full.numbers, full.matching], [[3], 1])
    assert.match(full.problems.join(), /^It fills max_seq_length \(64 tokens\)/)
    assert.deepEqual((await ask({ filter: 'problems' })).numbers, [3])
    assert.deepEqual((await ask({ search: 'first' })).problems, [])
    const before = await ask({ count: 9 })
    writeFileSync(file, jsonl(rows.slice(0, 1)))
    assert.deepEqual(
      [before.numbers.length, (await ask({ count: 9 })).numbers.length],
      [3, 1],
      'a file that was written is read again',
    )
  })

  it('knows the usual faults of templates', async () => {
    const tokenizer = {
      ...(await fixtureTokenizer('qwen2.5')),
      bosId: 1,
      eosIds: [9],
      unkToken: undefined,
    } as unknown as Tokenizer
    const labels = Int32Array.of(-100, -100, 5, 6)
    const found = sampleProblems({ ids: Int32Array.of(1, 1, 5, 6), labels }, tokenizer, 100)
    assert.match(found[0]!, /two BOS/)
    assert.match(found[1]!, /No end token is trained/)
    assert.deepEqual(sampleProblems({ ids: Int32Array.of(1, 5, 9), labels: Int32Array.of(-100, 5, 9) }, tokenizer, 100), [])
  })
})
