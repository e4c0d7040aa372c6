import assert from 'node:assert/strict'
import { decodeUtf8, parseJson } from '../../../engine/io/jsonText.ts'
import { compareCodePoints, pythonFloat, pythonJson, PyFloat } from '../../../engine/io/pythonJson.ts'
import { failure, random } from './support.ts'

const parse = (text: string): unknown => parseJson(text, { file: 'c.json' })

describe('JSON parser', () => {
  it('agrees with JSON.parse on random documents', () => {
    const next = random(3)
    const make = (depth: number): unknown => {
      const kind = Math.floor(next() * (depth > 3 ? 5 : 7))
      if (kind === 0) return null
      if (kind === 1) return next() < 0.5
      if (kind === 2) return (next() - 0.5) * 10 ** Math.floor(next() * 40 - 20)
      if (kind === 3) return Math.floor(next() * 1000) - 500
      if (kind === 4) return String.fromCharCode(...Array.from({ length: 5 }, () => next() * (next() < 0.5 ? 128 : 0xd7ff)))
      if (kind === 5) return Array.from({ length: Math.floor(next() * 4) }, () => make(depth + 1))
      return Object.fromEntries(
        Array.from({ length: Math.floor(next() * 4) }, (_, i) => [`${i}${String.fromCharCode(next() * 200)}`, make(depth + 1)]),
      )
    }
    for (let i = 0; i < 500; i++) {
      const value = make(0)
      for (const text of [JSON.stringify(value), JSON.stringify(value, null, '\t'), pythonJson(value)])
        assert.deepEqual(parse(text), JSON.parse(text))
    }
  })

  it('agrees with JSON.parse on what is valid', () => {
    const texts = [
      '',
      ' ',
      '1',
      '-',
      '-1',
      '01',
      '1.',
      '.5',
      '1e5',
      '1E+2',
      '1e',
      '+1',
      '"a',
      '"\\x"',
      '"\\u12"',
      '"\\u00e9\\/"',
      '"\t"',
      '[1,]',
      '[,]',
      '{"a":1,}',
      '{a:1}',
      "{'a':1}",
      '{"a" 1}',
      '{"a":}',
      '[1 2]',
      'true',
      'True',
      'nul',
      '[]]',
      '{}x',
      '\u00a01',
      '[1]//',
      'NaN',
      '-Infinity',
      '"\u2028"',
      '{"__proto__":1}',
      '{"":{"":0}}',
    ]
    for (const text of texts) {
      let expected: unknown
      let valid = true
      try {
        expected = JSON.parse(text)
      } catch {
        valid = false
      }
      if (valid) assert.deepEqual(parse(text), expected, text)
      else assert.throws(() => parse(text), failure('FILE_FORMAT', /^c\.json: line \d+, column \d+: not valid JSON: /))
    }
  })

  it('tells line and column', () => {
    assert.throws(
      () => parse('{\n  "a": 1,\n  "b": tru\n}'),
      failure('FILE_FORMAT', /^c\.json: line 3, column 8: .*expected a value, found "tru"/),
    )
    assert.throws(
      () => parse('{\n  "a": 1\n  "b": 2\n}'),
      failure('FILE_FORMAT', /line 3, column 3: .*expected "," or "}", found "\\?""/),
    )
    assert.throws(() => parse('{"a": [1'), failure('FILE_FORMAT', /line 1, column 9: .*end of the file/))
    assert.throws(() => parse('{"a": "x'), failure('FILE_FORMAT', /line 1, column 7: .*no end/))
  })

  it('refuses repeated keys unless told to take the last', () => {
    assert.throws(() => parse('{"a":1,\n"a":2}'), failure('FILE_FORMAT', /line 2, column 1: .*"a" appears twice/))
    assert.throws(() => parse('{"__proto__":1,"__proto__":2}'), failure('FILE_FORMAT', /appears twice/))
    assert.deepEqual(parseJson('{"a":1,"a":2}', { file: 'f', duplicateKeys: 'last' }), { a: 2 })
  })

  it('bounds the depth and survives what would exhaust the stack', () => {
    assert.doesNotThrow(() => parse('['.repeat(100) + ']'.repeat(100)))
    for (const open of ['[', '{"a":', '[{"a":'])
      assert.throws(() => parse(open.repeat(1_000_000)), failure('FILE_FORMAT', /nested more than 100/))
  })

  it('reads what Python writes, and a byte order mark', () => {
    assert.deepEqual(parseJson('\ufeff[NaN, Infinity, -Infinity, -1]', { file: 'f', python: true }), [
      NaN,
      Infinity,
      -Infinity,
      -1,
    ])
    assert.equal(decodeUtf8(Uint8Array.of(0xff)), undefined)
  })

  it('keeps numbers so that they can be written as they were', () => {
    const text = '{"big": 1000000000000000019884624838656, "eps": 1e-06, "one": 1.0, "inf": -Infinity, "n": 5}'
    assert.equal(
      pythonJson(parseJson(text, { file: 'f', python: true, keepNumbers: true }), { indent: undefined, sortKeys: false }),
      text,
    )
  })
})

describe('JSON as Python writes it', () => {
  it('writes floats like repr', () => {
    // Expected texts from json.dumps of Python 3.11.
    const expected: [number, string][] = [
      [0, '0.0'],
      [-0, '-0.0'],
      [1, '1.0'],
      [1e-5, '1e-05'],
      [1e-4, '0.0001'],
      [0.00012345, '0.00012345'],
      [1e-6, '1e-06'],
      [1.5e-7, '1.5e-07'],
      [123456.789, '123456.789'],
      [1e15, '1000000000000000.0'],
      [1e16, '1e+16'],
      [1.2345e16, '1.2345e+16'],
      [9007199254740992, '9007199254740992.0'],
      [1e22, '1e+22'],
      [1e300, '1e+300'],
      [5e-324, '5e-324'],
      [0.1, '0.1'],
      [-2.5, '-2.5'],
      [3e-5, '3e-05'],
      [1e17, '1e+17'],
      [123456789012345680, '1.2345678901234568e+17'],
      [0.05, '0.05'],
      [10000, '10000.0'],
    ]
    for (const [value, text] of expected) assert.equal(pythonFloat(value), text)
    const next = random(11)
    for (let i = 0; i < 2000; i++) {
      const value = (next() - 0.5) * 10 ** Math.floor(next() * 60 - 30)
      assert.equal(Number(pythonFloat(value)), value)
    }
  })

  it('escapes, indents and sorts like json.dumps(indent=2, sort_keys=True)', () => {
    const value = {
      b: [1, 2.5, {}],
      a: { z: [], y: null, é: 'ü\x7f\u2028\u{1f600}"\\\n', none: undefined },
      '\uffff': new PyFloat(1),
      '\u{1f600}': 2n,
    }
    assert.equal(
      pythonJson(value),
      '{\n  "a": {\n    "y": null,\n    "z": [],\n    "\\u00e9": "\\u00fc\\u007f\\u2028\\ud83d\\ude00\\"\\\\\\n"\n  },\n  "b": [\n    1,\n    2.5,\n    {}\n  ],\n  "\\uffff": 1.0,\n  "\\ud83d\\ude00": 2\n}',
    )
    assert.equal(pythonJson(new Map([['__proto__', 1]]), { indent: undefined }), '{"__proto__": 1}')
  })

  it('orders by code point like UTF-8 bytes', () => {
    const next = random(13)
    const units = ['', 'a', 'b', '\u007f', '\ud7ff', '\ue000', '\uffff', '\u{10000}', '\u{1f600}', '\u{10ffff}']
    const word = (): string => Array.from({ length: 3 }, () => units[Math.floor(next() * units.length)]).join('')
    for (let i = 0; i < 2000; i++) {
      const [a, b] = [word(), word()]
      assert.equal(Math.sign(compareCodePoints(a, b)), Buffer.compare(Buffer.from(a), Buffer.from(b)))
    }
  })
})
