import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import {
  parseSafetensorsHeader,
  readSafetensorsHeader,
  safetensorsHeaderLength,
  type SafetensorsHeader,
} from '../../../engine/io/safetensors.ts'
import { fixture, random, useFolder } from './support.ts'

const original = readFileSync(fixture('adapter/adapter_model.safetensors'))
const headerEnd = 8 + Number(original.readBigUInt64LE(0))

/** What a hostile writer puts where a value is expected. */
const values = [
  '1e308',
  '-1',
  '-0',
  '"4"',
  '9007199254740993',
  '18446744073709551615',
  'null',
  'true',
  '[]',
  '{}',
  '[[0]]',
  '1e-400',
  '0.5',
  `1${'0'.repeat(400)}`,
  `${'['.repeat(5000)}`,
  '"\\u0000"',
  '"\\ud800"',
  '__proto__',
  'NaN',
  '\u00ff',
  '{"__proto__":{"a":1}}',
]

function mutate(next: () => number): Buffer {
  const pick = <T>(items: readonly T[]): T => items[Math.floor(next() * items.length)]!
  let file = Buffer.from(original)
  for (let round = 0; round <= next() * 3; round++) {
    const position = Math.floor(next() * headerEnd)
    switch (Math.floor(next() * 7)) {
      case 0:
        file[position] = file[position]! ^ (1 << Math.floor(next() * 8))
        break
      case 1:
        file = file.subarray(0, Math.floor(next() * file.length))
        break
      case 2:
        if (file.length >= 8) file.writeBigUInt64LE(BigInt(Math.floor(next() * 2 ** Math.floor(next() * 64))))
        break
      case 3:
        file[Math.floor(next() * Math.min(8, file.length))] = Math.floor(next() * 256)
        break
      case 4: {
        // Replaces a number or text of the header, keeping the length field in step so that the parser gets there.
        const text = file.subarray(8, headerEnd).toString('latin1')
        const tokens = [...text.matchAll(/"[^"]*"|\d+/g)]
        if (tokens.length === 0) break
        const token = pick(tokens)
        const changed = Buffer.from(
          text.slice(0, token.index) + pick(values) + text.slice(token.index + token[0].length),
          'latin1',
        )
        const length = Buffer.alloc(8)
        length.writeBigUInt64LE(BigInt(changed.length))
        file = Buffer.concat([length, changed, file.subarray(headerEnd)])
        break
      }
      case 5:
        file = Buffer.concat([file.subarray(0, position), file.subarray(Math.floor(next() * headerEnd))])
        break
      default:
        file.subarray(position, position + Math.floor(next() * 64)).fill(Math.floor(next() * 256))
    }
  }
  return file
}

/** What may be relied on of any header that is accepted. */
function checkAccepted({ tensors, dataBegin, fileBytes }: SafetensorsHeader): void {
  let position = dataBegin
  for (const { begin, end, shape } of tensors) {
    assert.equal(begin, position)
    assert.ok(end >= begin && shape.every((size) => Number.isSafeInteger(size) && size >= 0))
    position = end
  }
  assert.equal(position, fileBytes)
}

function outcome(file: Uint8Array): 'accepted' | 'refused' {
  try {
    const length = safetensorsHeaderLength(file.subarray(0, 8), file.length, 'f')
    checkAccepted(parseSafetensorsHeader(file.subarray(8, 8 + length), file.length, 'f'))
    return 'accepted'
  } catch (error) {
    assert.ok(UnslothError.is(error, 'FILE_FORMAT'), `not an UnslothError: ${String(error)}`)
    assert.ok(error.message.length < 1000)
    return 'refused'
  }
}

describe('safetensors fuzzing', () => {
  const folder = useFolder()

  it('accepts or refuses 4000 mutated files, never anything else', () => {
    const next = random(20240607)
    const seen = { accepted: 0, refused: 0 }
    const before = process.memoryUsage().rss
    for (let i = 0; i < 4000; i++) seen[outcome(mutate(next))]++
    assert.ok(seen.refused > 3000, JSON.stringify(seen))
    assert.ok(seen.accepted > 10, JSON.stringify(seen))
    assert.ok(process.memoryUsage().rss - before < 300e6)
  })

  it('accepts or refuses random bytes with a fitting length', () => {
    const next = random(7)
    for (let i = 0; i < 500; i++) {
      const file = Buffer.from(Array.from({ length: 8 + Math.floor(next() * 200) }, () => Math.floor(next() * 256)))
      file.writeBigUInt64LE(BigInt(Math.floor(next() * (file.length - 7))))
      outcome(file)
    }
    assert.equal(outcome(original), 'accepted')
  })

  it('does the same with files on disk', async () => {
    const next = random(99)
    const path = join(folder(), 'f.safetensors')
    for (let i = 0; i < 150; i++) {
      writeFileSync(path, mutate(next))
      await readSafetensorsHeader(path).then(checkAccepted, (error: unknown) => assert.ok(UnslothError.is(error, 'FILE_FORMAT')))
    }
  })
})
