import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { diagnoseRecipe, parseRecipe } from '../../engine/recipe/parseRecipe.ts'

/** Deterministic generator (mulberry32): a failure can be repeated by its seed. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

const fixtures = path.join(import.meta.dirname, '../fixtures/recipes')
const sources = fs.readdirSync(fixtures).map((name) => fs.readFileSync(path.join(fixtures, name)))
const pieces = [
  '\t',
  '\r',
  '\n',
  '\n\n',
  ' ',
  ':',
  ': ',
  '- ',
  '[',
  ']',
  '{',
  '}',
  '"',
  "'",
  '&a ',
  '*a',
  '<<: *a\n',
  '!!str ',
  '!x ',
  '? ',
  '|\n',
  '>-\n',
  '%YAML 1.1\n---\n',
  '---\n',
  '...\n',
  '#',
  '@',
  '`',
  'null',
  'true',
  '.inf',
  '.nan',
  '-.inf',
  '0x1f',
  '1e999',
  '-1',
  '99999999999999999999',
  '__proto__: {x: 1}\n',
  'constructor: 1\n',
  '\u0000',
  '\u2028',
  '\ud800',
  '\ufeff',
  'é',
  '模',
  '!!binary aGk=',
  '!!timestamp 2001-01-01',
  'a: &a [*a]\n',
  '[[[[[[[[[[[[[[[[[[',
  '- - - - - - - - ',
  'model: y\n',
  'training: []\n',
  '\\x',
  '\\',
  ',',
]

function mutate(source: Uint8Array, next: (below: number) => number): Uint8Array {
  let bytes: Uint8Array = Buffer.from(source)
  for (let count = 1 + next(3); count > 0; count--) {
    const at = next(bytes.length + 1)
    const length = next(20)
    const piece = pieces[next(pieces.length)]!
    const copied = bytes.subarray(next(bytes.length + 1)).subarray(0, next(200))
    const inserts = [
      Buffer.from([next(256)]),
      Buffer.from(piece),
      Buffer.from(piece.repeat(1 + next(100))),
      Buffer.alloc(0),
      copied,
    ]
    const insert = inserts[next(inserts.length)]!
    bytes = Buffer.concat([
      bytes.subarray(0, at),
      insert,
      bytes.subarray(Math.min(bytes.length, at + (next(2) === 0 ? 0 : length))),
    ])
    if (next(30) === 0) bytes = bytes.subarray(0, next(bytes.length + 1))
  }
  return bytes
}

describe('recipe parser under random damage', () => {
  it('gives a recipe, or errors with a line, and never crashes or hangs', () => {
    let accepted = 0
    let refused = 0
    for (let seed = 1; seed <= 600; seed++) {
      const next = random(seed)
      const bytes = mutate(sources[next(sources.length)]!, next)
      const file = next(4) === 0 ? 'r.json' : 'r.yaml'
      const before = process.cpuUsage()
      const { recipe, issues } = diagnoseRecipe(bytes, file)
      assert.ok(process.cpuUsage(before).user < 2e6, `seed ${seed} took too long`)
      const lines =
        Buffer.from(bytes)
          .toString('utf8')
          .split(/\r\n|\n|\r/).length + 1
      for (const { range, message } of issues) {
        assert.ok(
          range.start.line >= 1 && range.start.line <= lines && range.start.column >= 1,
          `seed ${seed}: ${JSON.stringify(range)}`,
        )
        assert.ok(message.length > 0)
      }
      if (recipe === null) {
        refused++
        assert.throws(
          () => parseRecipe(bytes, file),
          (error) => UnslothError.is(error, 'RECIPE') && /^r\.(?:yaml|json):\d+:\d+: /.test(error.message),
          `seed ${seed}`,
        )
      } else accepted++
    }
    // Both sides were really visited.
    assert.ok(accepted > 20 && refused > 200, `${accepted} accepted, ${refused} refused`)
    assert.equal(({} as Record<string, unknown>).x, undefined)
  })
})
