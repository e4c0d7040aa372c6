import assert from 'node:assert/strict'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { keepOverhead, readOverhead } from '../../engine/runtime/gpuOverhead.ts'
import { temporaryFolder } from './run/support.ts'

describe('what a GPU takes unasked', () => {
  const folder = temporaryFolder()
  const file = join(folder, 'cache', 'gpus.json')

  it('is kept for each card, driver and build, and read again', () => {
    assert.equal(readOverhead('H200', file), undefined)
    keepOverhead('H200', { contextBytes: 5e8, graphNodeBytes: 900 }, file)
    keepOverhead('A100', { contextBytes: 4e8, graphNodeBytes: 800 }, file)
    keepOverhead('H200', { contextBytes: 6e8, graphNodeBytes: 1000 }, file)
    assert.deepEqual(
      [readOverhead('H200', file), readOverhead('A100', file)],
      [
        { contextBytes: 6e8, graphNodeBytes: 1000 },
        { contextBytes: 4e8, graphNodeBytes: 800 },
      ],
    )
    assert.ok(existsSync(file) && readFileSync(file, 'utf8').endsWith('}\n'))
  })

  it('is measured again where the file is damaged or from another version', () => {
    for (const text of [
      '',
      '{',
      '{"version":2,"gpus":{}}',
      '{"version":1,"gpus":{"H200":{"contextBytes":-1,"graphNodeBytes":0}}}',
    ]) {
      writeFileSync(file, text)
      assert.equal(readOverhead('H200', file), undefined, text)
    }
    keepOverhead('H200', { contextBytes: 1, graphNodeBytes: 2 }, file)
    assert.deepEqual(readOverhead('H200', file), { contextBytes: 1, graphNodeBytes: 2 })
  })
})
