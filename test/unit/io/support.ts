import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { UnslothError, type ErrorCode } from '#shared/errors.ts'
import { nodeFileSystem, type FileSystem } from '../../../engine/io/fileSystem.ts'

export const fixture = (name: string): string => fileURLToPath(new URL(`../../fixtures/io/${name}`, import.meta.url))

/** A temporary folder for the tests of one describe block. */
export function useFolder(): () => string {
  let folder = ''
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'unsloth-io-'))
  })
  afterEach(() => rmSync(folder, { recursive: true, force: true }))
  return () => folder
}

/** For assert.throws and assert.rejects: an UnslothError with this code whose message and hint match. */
export function failure(code: ErrorCode, message: RegExp, hint?: RegExp): (error: unknown) => boolean {
  return (error) => {
    if (!UnslothError.is(error, code) || !message.test(error.message) || (hint !== undefined && !hint.test(error.hint ?? '')))
      throw error
    return true
  }
}

/** Repeatable numbers in [0, 1): mulberry32. */
export function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A file of the given header text and data length, in memory. */
export function fileOf(header: string, dataBytes = 0): Uint8Array {
  const text = Buffer.from(header)
  const file = Buffer.alloc(8 + text.length + dataBytes)
  file.writeBigUInt64LE(BigInt(text.length))
  text.copy(file, 8)
  return file
}

/**
 * A file system whose changing operation number `failAt` (from 0) fails with `code`. With `dead`, everything after it fails,
 * too, as after a power cut.
 */
export function failingFileSystem(
  failAt: number,
  code: string,
  dead = false,
): FileSystem & { readonly operations: () => number } {
  let count = 0
  const step = (): void => {
    const now = count++
    if (now === failAt || (dead && now > failAt)) throw Object.assign(new Error(`${code}: injected`), { code })
  }
  return {
    ...nodeFileSystem,
    operations: () => count,
    async create(path, mode) {
      step()
      const file = await nodeFileSystem.create(path, mode)
      return {
        async write(data, position) {
          try {
            step()
          } catch (error) {
            // A full disk takes part of the data.
            await file.write(data.subarray(0, data.length >> 1), position)
            throw error
          }
          await file.write(data, position)
        },
        async sync() {
          step()
          await file.sync()
        },
        close: () => file.close(),
      }
    },
    async rename(from, to) {
      step()
      await nodeFileSystem.rename(from, to)
    },
    async remove(path) {
      step()
      await nodeFileSystem.remove(path)
    },
    async makeFolder(path) {
      step()
      await nodeFileSystem.makeFolder(path)
    },
  }
}
