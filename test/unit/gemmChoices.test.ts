import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { keepGemmChoices, readGemmChoices, type GemmChoice } from '../../engine/runtime/gemmChoices.ts'
import { temporaryFolder } from './run/support.ts'

/** A product of a kind, and the way that was fastest. */
const choice = (rows: number, way: number): GemmChoice => [130100, 0, rows, 6144, 4096, 257, 0, 0, 0, 0, way, 128, 2, 8, 2]

describe('timed products', () => {
  const folder = temporaryFolder()
  const file = join(folder, 'cache', 'gemms.json')

  it('are kept for each card, driver and build, and read again', () => {
    assert.deepEqual(readGemmChoices('H200', file), [])
    keepGemmChoices('H200', [choice(128, 1), choice(256, 3)], file)
    keepGemmChoices('A100', [choice(128, 2)], file)
    assert.deepEqual(readGemmChoices('H200', file), [choice(128, 1), choice(256, 3)])
    assert.deepEqual(readGemmChoices('A100', file), [choice(128, 2)])
  })

  it('stay as they were first kept, so that a run repeated multiplies in the same way', () => {
    keepGemmChoices('H200', [choice(128, 3), choice(512, 1)], file)
    assert.deepEqual(readGemmChoices('H200', file), [choice(128, 1), choice(256, 3), choice(512, 1)])
  })

  it('of another version of the library are kept beside them', () => {
    const other = choice(128, 3).with(0, 120900)
    keepGemmChoices('H200', [other], file)
    assert.deepEqual(readGemmChoices('H200', file).slice(-1), [other])
  })

  it('of old builds make room', () => {
    for (let build = 0; build < 10; ++build) keepGemmChoices(`build ${build}`, [choice(128, 0)], file)
    assert.deepEqual(
      Object.keys((JSON.parse(readFileSync(file, 'utf8')) as { gpus: object }).gpus),
      [2, 3, 4, 5, 6, 7, 8, 9].map((build) => `build ${build}`),
    )
  })

  it('are timed again where the file is damaged or from another version', () => {
    for (const text of [
      '',
      '{',
      '{"version":2,"gpus":{}}',
      '{"version":1,"gpus":{"H200":[[1,2,3]]}}',
      '{"version":1,"gpus":{"H200":[[0,0,128,8,8,257,0,0,0,0,1,128,2,8,0.5]]}}',
    ]) {
      writeFileSync(file, text)
      assert.deepEqual(readGemmChoices('H200', file), [], text)
    }
    keepGemmChoices('H200', [choice(128, 1)], file)
    assert.deepEqual(readGemmChoices('H200', file), [choice(128, 1)])
  })
})
