import assert from 'node:assert/strict'
import { gzipSync } from 'node:zlib'
import { ArrayScanner } from '../../../engine/data/arrayScanner.ts'
import { readRows, type Row } from '../../../engine/data/readRows.ts'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { fileWith, rejects, removeFolders } from './support.ts'

async function rowsOf(...files: string[]): Promise<Row[]> {
  const rows: Row[] = []
  for await (const row of readRows(files)) rows.push(row)
  return rows
}
const read = async (name: string, content: string | Uint8Array) =>
  (await rowsOf(fileWith(name, content))).map(({ value, line }) => ({ ...value, line }))

describe('reading rows', () => {
  after(removeFolders)

  it('reads JSONL with BOM, CRLF, blank lines and no last line end', async () => {
    assert.deepEqual(await read('a.jsonl', '\ufeff{"a": 1}\r\n\r\n  {"a": "ü🙂"}\n\n{"a": 3}'), [
      { a: 1, line: 1 },
      { a: 'ü🙂', line: 3 },
      { a: 3, line: 5 },
    ])
    assert.deepEqual(await read('a.jsonl', ''), [])
    assert.deepEqual(await read('a.json', '\n \n'), [])
  })

  it('reads lists and lists under "data", whatever the file is called', async () => {
    const expected = [
      { a: 1, line: 2 },
      { a: { b: ['}', ']'] }, line: 3 },
    ]
    assert.deepEqual(await read('a.json', '[\n{"a": 1},\n  {"a": {"b": ["}", "]"]}}\n]\n'), expected)
    assert.deepEqual(await read('a.jsonl', '[\n{"a": 1},\n  {"a": {"b": ["}", "]"]}}\n]\n'), expected)
    assert.deepEqual(await read('a.json', '{"data": [\n{"a": 1},\n{"a": {"b": ["}", "]"]}}], "version": [1]}'), expected)
    assert.deepEqual(await read('a.json', '{\n "version": {"data": [1]}, "data": [{"a": 1}]}'), [{ a: 1, line: 2 }])
    assert.deepEqual(await read('a.json', '{"data": [{"a": 1}]}\n'), [{ a: 1, line: 1 }])
    assert.deepEqual(await read('a.json', '{"a": 1}\n{"a": 2}\n'), [
      { a: 1, line: 1 },
      { a: 2, line: 2 },
    ])
    assert.deepEqual(await read('a.json', '[]'), [])
    assert.deepEqual(await read('a.json', '\ufeff[{"a": NaN}]'), [{ a: NaN, line: 1 }])
  })

  it('reads several files in order, and packed ones', async () => {
    const [one, two] = [fileWith('one.jsonl', '{"a": 1}\n'), fileWith('two.jsonl.gz', gzipSync('{"a": 2}\n{"a": 3}\n'))]
    assert.deepEqual(
      (await rowsOf(two, one)).map(({ value }) => value.a),
      [2, 3, 1],
    )
    await rejects(rowsOf(fileWith('a.jsonl.gz', 'not packed')), 'DATA', /not a gzip file/)
    await rejects(rowsOf(fileWith('a.jsonl.gz', gzipSync('{"a": 2}\n'.repeat(100)).subarray(0, 20))), 'DATA', /gzip/)
  })

  it('names file and line of what is wrong', async () => {
    await rejects(rowsOf('/nowhere/data.jsonl'), 'FILE_NOT_FOUND', /data\.jsonl: no such file/)
    await rejects(
      read('bad.jsonl', '{"a": 1}\n\n{"a": }\n'),
      'DATA',
      /bad\.jsonl:3: not valid JSON: expected a value, found "}", column 7/,
    )
    await rejects(read('bad.jsonl', '{"a": 1}\n[1]\n'), 'DATA', /bad\.jsonl:2: the row is a list, not an object/)
    await rejects(read('bad.jsonl', '{"a": 1}\nnull'), 'DATA', /bad\.jsonl:2: the row is null/)
    await rejects(read('bad.jsonl', 'hello'), 'DATA', /bad\.jsonl:1: /)
    await rejects(
      read('bad.jsonl', Buffer.concat([Buffer.from('{"a": 1}\n{"a": "'), Buffer.of(0xff), Buffer.from('"}\n')])),
      'DATA',
      /bad\.jsonl:2: not UTF-8/,
    )
    await rejects(read('bad.json', '[{"a": 1},\n{"a": 2,}]'), 'DATA', /bad\.json:2: /)
    await rejects(read('bad.json', '[{"a": 1},\n{"a":\n 2 3}]'), 'DATA', /bad\.json:3: /)
    await rejects(read('bad.json', '[{"a": 1},\n 5]'), 'DATA', /bad\.json:2: the row is a number/)
    await rejects(read('bad.json', '[{"a": 1},,{"a": 1}]'), 'DATA', /bad\.json:1: a row is missing/)
    await rejects(read('bad.json', '[{"a": 1},\n{"a": 2}'), 'DATA', /bad\.json:2: the file ends inside the list/)
    await rejects(read('bad.json', '[{"a": 1}]\n[2]'), 'DATA', /bad\.json:2: there is more after the end/)
    await rejects(read('bad.json', '[{"a": 1}}'), 'DATA', /bad\.json:1: /)
    await rejects(read('bad.json', '{\n "rows": [{"a": 1}]\n}'), 'DATA', /without a list under the key "data"/)
    await rejects(
      read('bad.json', Buffer.concat([Buffer.from('[\n{"a": "'), Buffer.of(0xc3, 0x28), Buffer.from('"}]')])),
      'DATA',
      /bad\.json:\d+: not UTF-8/,
    )
  })

  it('cuts a list at the same places however the text is split', () => {
    const rows = [{ a: 'x"],[{\\', b: [[1], { c: '\\"' }] }, { d: '' }, { e: '\n' }]
    const text = `{"x": [1, {"data": [2]}], "data" : ${JSON.stringify(rows, null, 1)} , "y": []}`
    const random = new Xoshiro128(5)
    for (let round = 0; round < 200; round++) {
      const scanner = new ArrayScanner(true)
      const found: unknown[] = []
      for (let at = 0; at < text.length;) {
        const length = 1 + random.below(12)
        for (const element of scanner.push(text.slice(at, at + length))) {
          found.push(JSON.parse(element.text))
          assert.equal(
            element.text,
            text
              .split('\n')
              .slice(element.line - 1)
              .join('\n')
              .trimStart()
              .slice(0, element.text.length),
          )
        }
        at += length
      }
      scanner.end()
      assert.deepEqual(found, rows)
    }
  })

  it('never fails in another way, whatever the bytes are', async () => {
    const random = new Xoshiro128(9)
    const seeds = ['{"data": [{"a": 1}, {"b": "x"}]}', '[{"a": [1, 2]}, {"b": null}]', '{"a": 1}\n{"b": "é"}\n']
    for (let round = 0; round < 150; round++) {
      const bytes = Buffer.from(seeds[random.below(seeds.length)]!)
      for (let change = random.below(4); change >= 0; change--)
        bytes[random.below(bytes.length)] = random.below(3) === 0 ? random.below(256) : '{}[]",:\n\\'.charCodeAt(random.below(9))
      try {
        await read(random.below(2) === 0 ? 'f.json' : 'f.jsonl', bytes)
      } catch (error) {
        assert.equal((error as { code: string }).code, 'DATA', String(error))
      }
    }
  })

  it('reads only what is taken', async () => {
    const file = fileWith('long.jsonl', `${'{"a": 1}\n'.repeat(50_000)}broken\n`)
    let count = 0
    for await (const row of readRows([file]))
      if (++count === 3) assert.equal(row.line, 3)
      else if (count > 3) break
    assert.equal(count, 4)
    await rejects(rowsOf(file), 'DATA', /long\.jsonl:50001: /)
  })
})
