import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildDataset, splitDataset, type DatasetOptions } from '../../../engine/data/dataset.ts'
import { fileWith, fixtures, fixtureTokenizer, jsonl, rejects, removeFolders } from './support.ts'

type Name = Parameters<typeof fixtureTokenizer>[0]
const build = async (rows: readonly unknown[], options: Partial<DatasetOptions> = {}, tokenizer: Name = 'stories260k') =>
  buildDataset({ files: [fileWith('d.jsonl', jsonl(rows))], maxSeqLength: 512, ...options }, await fixtureTokenizer(tokenizer))
const trained = (labels: Int32Array): number[] => [...labels].filter((label) => label !== -100)

describe('data set', () => {
  after(removeFolders)

  it('makes the ids and labels of the reference run from its JSONL', async () => {
    const expected = JSON.parse(readFileSync(join(fixtures, 'gsm8k/expected.json'), 'utf8')) as {
      ids: number[]
      trainedFrom: number
    }[]
    const { samples, format } = await buildDataset(
      { files: [join(fixtures, 'gsm8k/train.jsonl')], maxSeqLength: 256 },
      await fixtureTokenizer('llama'),
    )
    assert.equal(format.format, 'completion')
    assert.equal(samples.length, expected.length)
    for (const [index, { ids, trainedFrom }] of expected.entries()) {
      assert.deepEqual([...samples[index]!.ids], ids)
      assert.deepEqual(
        [...samples[index]!.labels],
        ids.map((id, at) => (at < trainedFrom ? -100 : id)),
      )
      assert.equal(samples[index]!.labelled, ids.length - trainedFrom)
    }
  })

  it('puts BOS before and EOS after a text, never two of them', async () => {
    const { samples } = await build([{ text: 'Once' }, { text: '<s>Once</s>' }, { text: 'Once</s>\n' }])
    for (const { ids } of samples)
      assert.deepEqual([ids.filter((id) => id === 1).length, ids.filter((id) => id === 2).length, ids[0]], [1, 1, 1])
    assert.deepEqual(samples[0]!.labels, samples[0]!.ids)
    assert.equal(samples[0]!.labelled, samples[0]!.ids.length - 1)
    const pairs = await build([{ prompt: '<s>a', completion: 'b</s>' }])
    assert.deepEqual(
      [...pairs.samples[0]!.ids].filter((id) => id < 3),
      [1, 2],
    )
  })

  it('trains answers or everything, as documented for each format', async () => {
    const tokenizer = await fixtureTokenizer('stories260k')
    const alpaca = [{ instruction: 'Say', input: '', output: 'Lily' }]
    assert.equal((await build(alpaca)).samples[0]!.labels.includes(-100), false)
    const answer = [...tokenizer.encode('Lily'), 2]
    assert.deepEqual(trained((await build(alpaca, { trainOnCompletions: true })).samples[0]!.labels), answer)
    const pair = [{ prompt: 'Say', completion: 'Lily' }]
    assert.deepEqual(trained((await build(pair)).samples[0]!.labels), answer)
    const whole = (await build(pair, { trainOnPrompt: true })).samples[0]!
    assert.deepEqual(whole.labels, whole.ids)
    const text = [{ text: '### Instruction:\nSay\n\n### Response:\nLily' }]
    assert.equal(
      tokenizer.decode(trained((await build(text, { trainOnCompletions: true })).samples[0]!.labels)).trim(),
      'Lily</s>',
    )
  })

  it('puts conversations through the template and trains the answers alone when asked', async () => {
    const rows = [
      {
        messages: [
          { role: 'user', content: 'one' },
          { role: 'assistant', content: 'first' },
          { role: 'user', content: 'two' },
          { role: 'assistant', content: 'second' },
        ],
      },
    ]
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const { samples } = await build(rows, { trainOnCompletions: true }, 'qwen2.5')
    assert.equal(tokenizer.decode(trained(samples[0]!.labels)), 'first<|im_end|>\nsecond<|im_end|>\n')
    assert.deepEqual((await build(rows, {}, 'qwen2.5')).samples[0]!.labels, samples[0]!.ids)
    const pair = [{ prompt: rows[0]!.messages.slice(0, 3), completion: rows[0]!.messages.slice(3) }]
    assert.equal(tokenizer.decode(trained((await build(pair, {}, 'qwen2.5')).samples[0]!.labels)), 'second<|im_end|>\n')
    const mistral = await fixtureTokenizer('mistral-v0.3')
    const {
      samples: [first],
    } = await build(rows, { trainOnCompletions: true }, 'mistral-v0.3')
    assert.equal([...first!.ids].filter((id) => id === mistral.bosId).length, 1)
    assert.deepEqual(trained(first!.labels), [...mistral.encode('first</s>'), ...mistral.encode('second</s>')])
  })

  it('names the row whose conversation the template refuses, and a model without a template', async () => {
    const rows = [
      { messages: [{ role: 'user', content: 'a' }] },
      {
        messages: [
          { role: 'user', content: 'a' },
          { role: 'user', content: 'b' },
        ],
      },
    ]
    await rejects(build(rows, {}, 'mistral-v0.3'), 'DATA', /d\.jsonl:2: .*must alternate/, /hint: The roles are user, user/)
    await rejects(build(rows), 'TOKENIZER', /has no chat template/)
    assert.equal((await build(rows, { chatTemplate: 'chatml' })).samples.length, 2)
    await rejects(
      build(rows, { chatTemplate: '{{ messages | length }}', trainOnCompletions: true }),
      'DATA',
      /d\.jsonl:\d: .*could not be found|all labels are masked/,
    )
  })

  it('cuts, leaves out or refuses what is too long, and says so', async () => {
    const rows = [{ text: 'a' }, { text: 'Once upon a time there was a little girl' }]
    const cut = await build(rows, { maxSeqLength: 8 })
    assert.deepEqual(
      cut.samples.map(({ ids, labels }) => [ids.length, labels.length]),
      [
        [3, 3],
        [8, 8],
      ],
    )
    assert.equal(cut.rows.truncated, 1)
    assert.match(cut.warnings[0]!, /^1 of 2 rows are longer than max_seq_length \(8 tokens\) and were cut: .*d\.jsonl:2\.$/)
    const left = await build(rows, { maxSeqLength: 8, tooLong: 'drop' })
    assert.deepEqual([left.samples.length, left.rows.tooLong, left.warnings.length], [1, 1, 1])
    await rejects(
      build(rows, { maxSeqLength: 8, tooLong: 'error' }),
      'DATA',
      /d\.jsonl:2: \d+ tokens, more than max_seq_length \(8\)/,
    )
  })

  it('refuses an empty data set and one that teaches nothing; warns when it is nearly so', async () => {
    await rejects(build([]), 'DATA', /d\.jsonl: the data set is empty/)
    await rejects(build([{ text: ' ' }]), 'DATA', /none of the 1 rows can be used/)
    await rejects(
      buildDataset({ files: [], maxSeqLength: 8 }, await fixtureTokenizer('stories260k')),
      'DATA',
      /No data file is given/,
    )
    const unmarked = { text: 'no marker' }
    const marked = { text: '### Instruction:\na\n### Response:\nb' }
    await rejects(
      build([unmarked, unmarked], { trainOnCompletions: true }),
      'DATA',
      /all labels are masked \(−100\) in all 2 rows.*d\.jsonl:1, .*d\.jsonl:2/,
      /hint: .*chat template/,
    )
    const nearly = await build([...Array.from({ length: 9 }, () => unmarked), marked], { trainOnCompletions: true })
    assert.match(nearly.warnings[0]!, /^Nearly all rows have only masked labels/)
    assert.match(nearly.warnings[1]!, /^9 of 10 rows have nothing to learn from.*d\.jsonl:5 and 4 more\.$/)
    assert.deepEqual([nearly.samples.length, nearly.rows.masked], [1, 9])
    const some = await build([unmarked, marked, { text: '' }], { trainOnCompletions: true })
    assert.deepEqual(
      [some.warnings.length, some.rows],
      [2, { rows: 3, truncated: 0, split: 0, tooLong: 0, empty: 1, masked: 1, undesired: 0, bad: 0 }],
    )
    const cut = build([{ prompt: 'Once upon a time there was a girl', completion: 'b' }], { maxSeqLength: 4 })
    await rejects(cut, 'DATA', /all labels are masked/, /hint: .*max_seq_length/)
  })

  it('counts rows, tokens and lengths, and stops at max_samples', async () => {
    const rows = Array.from({ length: 20 }, (_, index) => ({ text: 'a'.repeat(index + 1) }))
    const { statistics, rows: counts, samples } = await build(rows)
    const lengths = samples.map(({ ids }) => ids.length)
    assert.equal(counts.rows, 20)
    assert.equal(
      statistics.tokens,
      lengths.reduce((sum, length) => sum + length),
    )
    assert.equal(statistics.labelledTokens, statistics.tokens - 20)
    assert.deepEqual([statistics.lengths.shortest, statistics.lengths.longest], [Math.min(...lengths), Math.max(...lengths)])
    const sorted = lengths.toSorted((a, b) => a - b)
    assert.deepEqual(
      [statistics.lengths.p50, statistics.lengths.p95, statistics.lengths.p99],
      [sorted[9], sorted[18], sorted[19]],
    )
    assert.equal(
      statistics.lengths.histogram.reduce((sum, bin) => sum + bin.samples, 0),
      20,
    )
    for (const { from, to, samples: inBin } of statistics.lengths.histogram)
      assert.equal(lengths.filter((length) => length >= from && length <= to).length, inBin)
    assert.equal((await build([...rows.slice(0, 3), 7], { maxSamples: 3 })).samples.length, 3)
  })

  it('holds out a share or a number for evaluation, by the seed', async () => {
    const dataset = await build(Array.from({ length: 21 }, (_, index) => ({ text: `a${index}` })))
    const { train, evaluation } = splitDataset(dataset, 0.1, 3407)
    assert.deepEqual([train.samples.length, evaluation.samples.length, evaluation.statistics.samples], [18, 3, 3])
    assert.deepEqual(
      [...train.samples, ...evaluation.samples].map(({ line }) => line).sort((a, b) => a - b),
      dataset.samples.map(({ line }) => line),
    )
    const held = (seed: number) => splitDataset(dataset, 5, seed).evaluation.samples.map(({ line }) => line)
    assert.deepEqual(held(1), held(1))
    assert.notDeepEqual(held(1), held(2))
    assert.deepEqual(
      held(1),
      held(1).toSorted((a, b) => a - b),
    )
    assert.throws(() => splitDataset(dataset, 21, 1), /takes 21 of 21 samples/)
  })

  it('can be stopped while it is read', async () => {
    const stop = new AbortController()
    const rows = Array.from({ length: 600 }, () => ({ text: 'a' }))
    await rejects(
      build(rows, {
        signal: stop.signal,
        onRows: () => {
          stop.abort()
        },
      }),
      'STOPPED',
      /Stopped while the data set was read/,
    )
  })
})
