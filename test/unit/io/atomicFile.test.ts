import assert from 'node:assert/strict'
import { chmodSync, lstatSync, mkdirSync, readFileSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  cleanPartials,
  releaseTemporary,
  temporaryBeside,
  writeFileAtomic,
  writeFolderAtomic,
} from '../../../engine/io/atomicFile.ts'
import { failingFileSystem, failure, useFolder } from './support.ts'
import type { FileSystem } from '../../../engine/io/fileSystem.ts'

describe('atomic files', () => {
  const folder = useFolder()
  const at = (name: string): string => join(folder(), name)

  it('creates and replaces, keeps permissions and follows links', async () => {
    await writeFileAtomic(at('a.json'), 'one')
    await writeFileAtomic(at('secret'), Uint8Array.of(1, 2), { mode: 0o600 })
    assert.equal(readFileSync(at('a.json'), 'utf8'), 'one')
    if (process.platform !== 'win32') {
      assert.equal(statSync(at('secret')).mode & 0o777, 0o600)
      chmodSync(at('a.json'), 0o664)
      symlinkSync(at('a.json'), at('link'))
      await writeFileAtomic(at('link'), 'two')
      assert.ok(lstatSync(at('link')).isSymbolicLink())
      assert.equal(statSync(at('a.json')).mode & 0o777, 0o664)
      assert.equal(readFileSync(at('a.json'), 'utf8'), 'two')
    }
    assert.ok(readdirSync(folder()).every((name) => !name.includes('partial')))
  })

  it('keeps the old content and leaves nothing when writing fails', async () => {
    writeFileSync(at('a'), 'old')
    for (let failAt = 0; failAt < 4; failAt++) {
      await assert.rejects(
        writeFileAtomic(at('a'), 'new', { fs: failingFileSystem(failAt, 'ENOSPC') }),
        failure('FILE_WRITE', /a: could not be written: the disk is full/, /are free in/),
      )
      assert.equal(readFileSync(at('a'), 'utf8'), 'old')
      assert.deepEqual(readdirSync(folder()), ['a'])
    }
  })
})

describe('atomic folders', () => {
  const folder = useFolder()
  const at = (...names: string[]): string => join(folder(), ...names)
  const save = (content: string, fs?: FileSystem): Promise<void> =>
    writeFolderAtomic(
      at('model'),
      async (temporary) => {
        await writeFileAtomic(join(temporary, 'a'), content, fs && { fs })
        await writeFileAtomic(join(temporary, 'b'), content, fs && { fs })
      },
      fs && { fs },
    )
  const content = (): string => {
    assert.deepEqual(readdirSync(at('model')).sort(), ['a', 'b'])
    assert.equal(readFileSync(at('model', 'a'), 'utf8'), readFileSync(at('model', 'b'), 'utf8'))
    return readFileSync(at('model', 'a'), 'utf8')
  }

  it('creates and replaces whole folders', async () => {
    await save('old')
    assert.equal(content(), 'old')
    writeFileSync(at('model', 'extra'), '')
    await save('new')
    assert.equal(content(), 'new')
    assert.deepEqual(readdirSync(folder()), ['model'])
  })

  it('passes on errors of the filling and keeps the old folder', async () => {
    await save('old')
    const broken = new Error('no data')
    await assert.rejects(
      writeFolderAtomic(at('model'), () => Promise.reject(broken)),
      broken,
    )
    assert.equal(content(), 'old')
    assert.deepEqual(readdirSync(folder()), ['model'])
  })

  it('keeps the old folder when any single operation fails', async () => {
    await save('old')
    const whole = failingFileSystem(Infinity, 'EIO')
    await save('old', whole)
    let failed = 0
    for (let failAt = 0; failAt < whole.operations(); failAt++) {
      await save('new', failingFileSystem(failAt, 'EIO')).then(
        () => assert.equal(content(), 'new'),
        (error: unknown) => {
          failed++
          assert.ok(failure('FILE_WRITE', /input\/output error/)(error))
          assert.equal(content(), 'old')
        },
      )
      await cleanPartials(folder())
      assert.deepEqual(readdirSync(folder()), ['model'])
      await save('old')
    }
    // Only failing to remove the old folder at the very end is no failure to save.
    assert.equal(failed, whole.operations() - 1)
  })

  it('has the old or the new folder after a crash at any moment', async () => {
    await save('old')
    const whole = failingFileSystem(Infinity, 'EIO')
    await save('old', whole)
    const seen = new Set<string>()
    for (let failAt = 0; failAt < whole.operations(); failAt++) {
      await save('new', failingFileSystem(failAt, 'EIO', true)).catch(() => undefined)
      const { restored } = await cleanPartials(folder())
      seen.add(`${content()}${restored.length > 0 ? ' restored' : ''}`)
      assert.deepEqual(readdirSync(folder()), ['model'])
      await save('old')
    }
    assert.deepEqual([...seen].sort(), ['new', 'new restored', 'old'])
  })

  it('removes only abandoned leftovers', async () => {
    const mine = temporaryBeside(at('model'))
    mkdirSync(mine)
    const tag = mine.slice(-10, -6)
    const dead = at(`x.partial-4194305-${tag}abcdef`)
    const alive = at(`x.partial-${process.ppid}-${tag}abcdef`)
    const otherHost = at(`x.partial-4194305-${tag === '0000' ? '1111' : '0000'}abcdef`)
    for (const path of [dead, alive, otherHost, at('notes.partial-old'), at('x.partial')]) writeFileSync(path, '')
    const { removed } = await cleanPartials(folder())
    assert.deepEqual(removed, [dead.slice(folder().length + 1)])
    releaseTemporary(mine)
    assert.equal((await cleanPartials(folder())).removed.length, 1)
    assert.deepEqual(readdirSync(folder()).length, 4)
    assert.deepEqual(await cleanPartials(at('nothing')), { removed: [], restored: [] })
  })
})
