import assert from 'node:assert/strict'
import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildDataset, type Dataset, type DatasetOptions } from '../../../engine/data/dataset.ts'
import { openStoredSamples, SampleWriter } from '../../../engine/data/sampleStore.ts'
import { fileWith, fixtureTokenizer, folderWith, jsonl, rejects, removeFolders } from './support.ts'

const rows = Array.from({ length: 1500 }, (_, index) => ({
  messages: [
    { role: 'user', content: `question ${index}` },
    { role: 'assistant', content: `answer ${'x'.repeat(index % 40)}` },
  ],
}))
const plain = ({ samples, rows: counts }: Dataset) => [
  samples.map(({ ids, labels, labelled, file, line }) => [[...ids], [...labels], labelled, file, line]),
  counts,
]

describe('threads and cache of data', () => {
  after(removeFolders)

  it('give the same samples in the same order as one thread', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const options: DatasetOptions = {
      files: [fileWith('d.jsonl', jsonl(rows))],
      maxSeqLength: 40,
      trainOnCompletions: true,
      tooLong: 'split',
    }
    const expected = await buildDataset(options, tokenizer)
    assert.deepEqual(plain(await buildDataset({ ...options, threads: 2 }, tokenizer)), plain(expected))
    assert.ok(expected.rows.split > 0)
  })

  it('name the first bad row, whatever thread finds it', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const text = jsonl(rows).split('\n')
    text[1200] = '{"messages": ['
    text[1400] = 'also bad'
    const file = fileWith('d.jsonl', text.join('\n'))
    await rejects(
      buildDataset({ files: [file], maxSeqLength: 64, threads: 2 }, tokenizer),
      'DATA',
      /d\.jsonl:1201: not valid JSON/,
    )
    const skipped = await buildDataset({ files: [file], maxSeqLength: 64, threads: 2, skipBadRows: true }, tokenizer)
    assert.deepEqual([skipped.samples.length, skipped.rows.bad], [1498, 2])
    await rejects(
      buildDataset({ files: [file], maxSeqLength: 8, threads: 1, tooLong: 'error', skipBadRows: true }, tokenizer),
      'DATA',
      /d\.jsonl:1: \d+ tokens, more than/,
    )
  })

  it('keep what was made, and take it up again until anything changes', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const cacheFolder = folderWith({})
    const file = fileWith('d.jsonl', jsonl(rows))
    const options: DatasetOptions = { files: [file], maxSeqLength: 40, trainOnCompletions: true, cacheFolder }
    const first = await buildDataset(options, tokenizer)
    const second = await buildDataset(options, tokenizer)
    assert.deepEqual([first.fromCache, second.fromCache, readdirSync(cacheFolder).length], [false, true, 1])
    assert.deepEqual(plain(second), plain(first))
    assert.deepEqual(second.warnings, first.warnings)
    assert.deepEqual(second.statistics, first.statistics)
    for (const change of [
      { maxSeqLength: 41 },
      { trainOnCompletions: false },
      { lastResponseOnly: true },
      { chatTemplate: 'chatml' },
      { maxSamples: 5 },
    ])
      assert.equal((await buildDataset({ ...options, ...change }, tokenizer)).fromCache, false)
    writeFileSync(file, jsonl(rows.slice(1)))
    assert.equal((await buildDataset(options, tokenizer)).fromCache, false)
  })

  it('do not trust a damaged cache, and leave nothing of a stopped run', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const cacheFolder = folderWith({})
    const options: DatasetOptions = { files: [fileWith('d.jsonl', jsonl(rows))], maxSeqLength: 40, cacheFolder }
    const expected = plain(await buildDataset(options, tokenizer))
    const path = join(cacheFolder, readdirSync(cacheFolder)[0]!)
    truncateSync(path, readFileSync(path).length - 100)
    const again = await buildDataset(options, tokenizer)
    assert.deepEqual([again.fromCache, plain(again)], [false, expected])
    const stop = new AbortController()
    await rejects(
      buildDataset(
        {
          ...options,
          maxSeqLength: 50,
          signal: stop.signal,
          onRows: () => {
            stop.abort()
          },
        },
        tokenizer,
      ),
      'STOPPED',
    )
    assert.deepEqual(
      readdirSync(cacheFolder).filter((name) => name.endsWith('.part')),
      [],
    )
    writeFileSync(join(cacheFolder, 'file'), '')
    const unwritable = await buildDataset({ ...options, cacheFolder: join(cacheFolder, 'file') }, tokenizer)
    assert.deepEqual(plain(unwritable), expected)
  })

  it('read samples from the file when they are more than the memory is to hold', async () => {
    const path = join(folderWith({}), 'a.tokens')
    const writer = await SampleWriter.open(path, 16)
    const batch = (first: number) => ({
      rows: 2,
      files: ['f'],
      remarks: [],
      ids: Int32Array.of(first, 2, 3, 4, 5),
      table: Int32Array.of(3, 1, 0, 7, 2, 1, 0, 8),
      spans: Int32Array.of(1, 3, 0, 2),
    })
    await writer.add(batch(1))
    await writer.add(batch(9))
    for (const samples of [
      await writer.finish({ a: 1 }),
      (await openStoredSamples(path, 16))!.samples,
      (await openStoredSamples(path))!.samples,
    ]) {
      assert.deepEqual(
        samples.map(({ ids, labels, labelled, line }) => [[...ids], [...labels], labelled, line]),
        [
          [[1, 2, 3], [-100, 2, 3], 2, 7],
          [[4, 5], [4, 5], 1, 8],
          [[9, 2, 3], [-100, 2, 3], 2, 7],
          [[4, 5], [4, 5], 1, 8],
        ],
      )
    }
  })
})
