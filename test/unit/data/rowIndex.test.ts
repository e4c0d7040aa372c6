import assert from 'node:assert/strict'
import { appendFileSync, closeSync, openSync, utimesSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { countRows, readSourceRows } from '../../../engine/data/readRows.ts'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { parseRow } from '../../../engine/data/row.ts'
import { PreviewCache } from '../../../engine/rpc/previewData.ts'
import { fileWith, fixtures, folderWith, removeFolders } from './support.ts'
import { processorTime } from '../../machineTime.ts'

async function take(file: string, from: number, count = 3): Promise<[line: number, value: unknown][]> {
  const rows: [number, unknown][] = []
  for await (const row of readSourceRows([file], { from, to: from + count })) rows.push([row.line, parseRow(row).value.n])
  return rows
}

describe('index of rows', () => {
  after(removeFolders)

  it('finds any row of a file of lines, blank lines and long rows among them', async () => {
    const random = new Xoshiro128(3)
    const lines: string[] = ['\ufeff{"n":0}']
    const expected: [number, number][] = [[1, 0]]
    for (let n = 1; n < 12_000;) {
      if (random.below(9) === 0) lines.push(['', ' ', '\t \r'][random.below(3)]!)
      else {
        expected.push([lines.length + 1, n])
        lines.push(
          JSON.stringify({ n: n++, ...(random.below(700) === 0 && { long: 'x'.repeat(random.below(600_000)) }) }) +
            (random.below(2) === 0 ? '\r' : ''),
        )
      }
    }
    for (const end of ['', '\n', '\n\n \n']) {
      const file = fileWith('d.jsonl', lines.join('\n') + end)
      for (const from of [
        11_999,
        5000,
        4095,
        4096,
        0,
        1,
        11_000,
        8193,
        ...Array.from({ length: 20 }, () => random.below(12_000)),
      ])
        assert.deepEqual(await take(file, from), expected.slice(from, from + 3), String(from))
      assert.deepEqual(await take(file, 12_000), [])
      assert.equal(await countRows([file]), 12_000)
    }
  })

  it('goes over the ends of files, and forgets a file that was written', async () => {
    const file = fileWith('d.jsonl', '{"n":1}\n{"n":2}\n')
    const list = fileWith('list.json', '[{"n": 3},\n {"n": 4}]')
    const rows: unknown[] = []
    for await (const row of readSourceRows([file, list, file], { from: 1, to: 5 })) rows.push(parseRow(row).value.n)
    assert.deepEqual(rows, [2, 3, 4, 1])
    assert.equal(await countRows([file]), 2)
    appendFileSync(file, '{"n":9}\n')
    utimesSync(file, new Date(), new Date(Date.now() + 2000))
    assert.deepEqual(await take(file, 2), [[3, 9]])
  })

  it('shows the beginning of a large file at once, and its end soon', async () => {
    const path = join(folderWith({}), 'large.jsonl')
    const descriptor = openSync(path, 'w')
    const row = `${JSON.stringify({ text: 'Once upon a time. '.repeat(56) })}\n`
    const block = row.repeat(4096)
    const blocks = Math.ceil(2 ** 28 / block.length)
    for (let count = 0; count < blocks; count++) writeSync(descriptor, block)
    closeSync(descriptor)
    const context = { signal: new AbortController().signal }
    const recipe = `model: ${join(fixtures, 'stories260k')}\ndata:\n  local_dataset: ${path}\n`
    const cache = new PreviewCache()
    await cache.preview({ recipe, rows: 1 }, context)
    const timed = async (firstRow: number): Promise<number> => {
      return processorTime(async () => {
        const { preview } = await cache.preview({ recipe, rows: 200, firstRow, count: 2 }, context)
        assert.deepEqual(
          preview?.shown.map(({ line }) => line),
          [firstRow + 1, firstRow + 2],
        )
      })
    }
    const [first, last] = [0, blocks * 4096 - 500]
    const begin = await timed(first)
    const end = await timed(last)
    const again = await timed(last - 300)
    assert.ok(begin < 2000, `the beginning took ${begin} ms`)
    assert.ok(again < end && again < 2000, `the end took ${end} ms, then ${again} ms`)
  })
})
