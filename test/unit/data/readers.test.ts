import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { buildDataset } from '../../../engine/data/dataset.ts'
import { datasetFiles } from '../../../engine/data/datasetFiles.ts'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { countRows, readRows } from '../../../engine/data/readRows.ts'
import { parseSplit, rangeOf } from '../../../engine/data/splits.ts'
import { UnslothError } from '#shared/errors.ts'
import { fileWith, fixtures, fixtureTokenizer, folderWith, jsonl, rejects, removeFolders } from './support.ts'

async function read(name: string, content: string | Uint8Array): Promise<Record<string, unknown>[]> {
  const rows: Record<string, unknown>[] = []
  for await (const { value, line } of readRows([fileWith(name, content)])) rows.push({ ...value, line })
  return rows
}

const parquet = join(fixtures, 'parquet')

describe('readers of other formats', () => {
  after(removeFolders)

  it('reads CSV: quotes, line ends and delimiters in quotes, CRLF, BOM, blank lines', async () => {
    const text = '\ufeffa,b\r\n1,"two, ""quoted""\nlines"\r\n\r\n"",x\n'
    assert.deepEqual(await read('d.csv', text), [
      { a: '1', b: 'two, "quoted"\nlines', line: 2 },
      { a: '', b: 'x', line: 5 },
    ])
    assert.deepEqual(await read('d.csv.gz', gzipSync(text)), await read('d.csv', text))
    assert.deepEqual(await read('d.tsv', 'a\tb\n1,5\t2'), [{ a: '1,5', b: '2', line: 2 }])
    assert.deepEqual(await read('d.csv', 'a;b\n1,5;2\n'), [{ a: '1,5', b: '2', line: 2 }])
    assert.deepEqual(await read('d.csv', ''), [])
  })

  it('names the line of what is wrong in CSV', async () => {
    await rejects(read('d.csv', 'a,b\n1,2\n3\n'), 'DATA', /d\.csv:3: the row has 1 fields, but the first line names 2 columns/)
    await rejects(read('d.csv', 'a,b\n1,"2\n3\n'), 'DATA', /d\.csv:2: a quotation mark is opened and never closed/)
    await rejects(read('d.csv', 'a,b\n1,"2"3\n'), 'DATA', /d\.csv:2: text after the closing quotation mark/)
    await rejects(read('d.csv', 'a,a\n1,2\n'), 'DATA', /d\.csv:1: two columns are called "a"/)
    await rejects(read('d.csv', Uint8Array.of(0x61, 0x0a, 0xff)), 'DATA', /not UTF-8/)
  })

  it('gives the same rows of CSV however it comes in pieces', async () => {
    const random = new Xoshiro128(7)
    const value = (): string =>
      Array.from({ length: random.below(6) }, () => ['a', ',', '"', '\n', ' ', 'ü', '\r\n'][random.below(7)]!).join('')
    const expected = Array.from({ length: 400 }, () => ({ x: `v${value()}`, y: value() }))
    const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`
    const text = `x,y\n${expected.map(({ x, y }) => `${quoted(x)},${quoted(y)}\n`).join('')}`
    assert.deepEqual(
      (await read('d.csv', text)).map(({ x, y }) => ({ x, y })),
      expected,
    )
  })

  for (const file of readdirSync(parquet).filter((name) => name.endsWith('.parquet'))) {
    it(`reads Parquet as expected: ${file}`, async () => {
      const expected = JSON.parse(readFileSync(join(parquet, file.replace('.parquet', '.json')), 'utf8')) as unknown[][]
      const rows: unknown[] = []
      for await (const row of readRows([join(parquet, file)])) {
        assert.equal(row.line, rows.length + 1)
        rows.push(Object.values(row.value))
      }
      assert.deepEqual(JSON.parse(JSON.stringify(rows)), expected)
      assert.equal(await countRows([join(parquet, file)]), expected.length)
    })
  }

  it('refuses what is no Parquet file, and survives damaged ones', async () => {
    await rejects(read('d.parquet', 'PAR1 not at all'), 'DATA', /d\.parquet: not a Parquet file, or a damaged one/)
    const good = readFileSync(join(parquet, 'datapage_v2.snappy.parquet'))
    const random = new Xoshiro128(11)
    for (let round = 0; round < 150; round++) {
      const bad = Buffer.from(good)
      for (let change = 0; change < 1 + random.below(4); change++) bad[random.below(bad.length)] = random.below(256)
      try {
        await read('d.parquet', bad.subarray(0, random.below(5) === 0 ? random.below(bad.length) : bad.length))
      } catch (error) {
        assert.ok(UnslothError.is(error, 'DATA'), String((error as Error).stack))
      }
    }
  })

  it('stops at what unpacks to more than anyone can want', async () => {
    const bomb = gzipSync(Buffer.alloc(300 * 2 ** 20, 0x20))
    await rejects(read('d.jsonl.gz', bomb), 'DATA', /unpack to more than 200 times as much/)
    await rejects(
      read('d.parquet', readFileSync(join(fixtures, 'bomb.parquet'))),
      'DATA',
      /a page of 12831 bytes unpacks to 419430410; reading it was stopped/,
    )
  })

  it('cuts running text into windows that overlap, with EOS after each', async () => {
    const tokenizer = await fixtureTokenizer('stories260k')
    const text = 'Once upon a time there was a little girl called Lily. '.repeat(6)
    const ids = tokenizer.encode(text)
    const { samples, format } = await buildDataset(
      { files: [fileWith('d.txt', text)], maxSeqLength: 64, chunkSize: 20, stride: 5 },
      tokenizer,
    )
    assert.equal(format.format, 'raw')
    assert.equal(samples.length, Math.ceil((ids.length - 20) / 15) + 1)
    for (const [index, { ids: window, labels }] of samples.entries()) {
      assert.deepEqual([...window], [...ids.subarray(index * 15, index * 15 + 20), 2])
      assert.deepEqual(labels, window)
    }
    await rejects(
      buildDataset({ files: [fileWith('d.md', ' \n')], maxSeqLength: 64 }, tokenizer),
      'DATA',
      /d\.md: the file is empty or contains only white space/,
    )
    const records = await buildDataset(
      { files: [fileWith('d.jsonl', jsonl([{ body: 'a b' }]))], format: 'raw', maxSeqLength: 64 },
      tokenizer,
    )
    assert.equal(records.samples.length, 1)
  })

  it('takes slices of the rows as datasets does', async () => {
    const slice = (text: string, rows: number) => rangeOf(parseSplit(text), rows)
    assert.deepEqual(slice('train[:5%]', 1319), { from: 0, to: 66 })
    assert.deepEqual(slice('train[10:20]', 100), { from: 10, to: 20 })
    assert.deepEqual(slice('train[-10%:]', 95), { from: 85, to: 95 })
    assert.deepEqual(slice('train[50%:]', 3), { from: 2, to: 3 })
    assert.throws(() => parseSplit('train[5%'), /neither a split nor a slice/)
    assert.throws(() => parseSplit('train[:500%]'), /no share/)
    assert.throws(() => slice('train[5:5]', 10), /none of its 10 rows/)
    const file = fileWith('d.jsonl', jsonl(Array.from({ length: 20 }, (_, index) => ({ text: `t${index}` }))))
    const { samples } = await buildDataset(
      { files: [file], maxSeqLength: 64, slice: parseSplit('train[50%:75%]'), maxSamples: 3 },
      await fixtureTokenizer('stories260k'),
    )
    assert.deepEqual(
      samples.map(({ line }) => line),
      [11, 12, 13],
    )
  })

  it('tells the splits of a folder by the names of its files', async () => {
    const folder = folderWith({ 'train-00000.jsonl': '', 'my.test.csv': '', 'README.md': '', 'notes.bin': '' })
    const names = async (split: string) => (await datasetFiles([folder], split)).map((path) => path.slice(folder.length + 1))
    assert.deepEqual([await names('train'), await names('test')], [['train-00000.jsonl'], ['my.test.csv']])
    await rejects(datasetFiles([folder], 'validation'), 'DATA', /no file of this folder belongs to the split "validation"/)
    await rejects(datasetFiles([fileWith('a.jsonl', '')], 'test'), 'DATA', /has no split named "test"/)
    await rejects(datasetFiles([folderWith({})]), 'DATA', /no data file in this folder/)
  })

  it('leaves out and counts rows that cannot be read, when asked to', async () => {
    const text = `${jsonl([{ text: 'a' }])}{"text": \n{"body": "b"}\n${jsonl([{ text: 'c' }])}`
    const tokenizer = await fixtureTokenizer('stories260k')
    await rejects(
      buildDataset({ files: [fileWith('d.jsonl', text)], maxSeqLength: 64 }, tokenizer),
      'DATA',
      /d\.jsonl:2: not valid JSON/,
      /hint: .*skip_bad_rows/,
    )
    const { samples, rows, warnings } = await buildDataset(
      { files: [fileWith('d.jsonl', text)], maxSeqLength: 64, skipBadRows: true },
      tokenizer,
    )
    assert.deepEqual([samples.length, rows.bad], [2, 2])
    assert.match(
      warnings.join('\n'),
      /2 of 4 rows cannot be read and were left out: .*d\.jsonl:2, .*d\.jsonl:3\.\nThe first of them: .*d\.jsonl:2: not valid JSON/,
    )
  })
})
