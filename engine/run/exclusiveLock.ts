import fs from 'node:fs'
import { join } from 'node:path'
import * as z from 'zod'
import type { ProcessIdentity } from '#shared/runState.ts'
import { heartbeatStale, processIdentitySchema } from '#shared/runState.ts'
import type { RunFs } from './files.ts'
import {
  errorCode,
  fileWriteError,
  nodeFs,
  readJson,
  readNames,
  removeQuietly,
  temporaryName,
  temporaryPrefix,
  writeFileAtomic,
} from './files.ts'
import { isProcessAlive, thisProcess } from './processInfo.ts'

const ownerSchema = processIdentitySchema.extend({
  /** False once the owner has given the lock back. */
  held: z.boolean(),
  /** What the owner does with it, for messages. */
  purpose: z.string(),
})
export type LockOwner = ProcessIdentity & { readonly purpose: string }

const generationName = (generation: number): string => `${generation}.json`

function highestGeneration(folder: string): number {
  let highest = 0
  for (const name of readNames(folder)) {
    const match = /^(\d+)\.json$/.exec(name)
    if (match !== null) highest = Math.max(highest, Number(match[1]))
  }
  return highest
}

/** A file whose content appears together with its name, under which nothing stood before; false when something did. */
export function createExclusively(disk: RunFs, path: string, text: string): boolean {
  const beside = temporaryName(path)
  try {
    writeFileAtomic(beside, text, { disk, durable: false })
    try {
      disk.linkSync(beside, path)
    } catch (error) {
      if (errorCode(error) === 'EEXIST') return false
      // A file system without hard links: the content follows the name; a reader in between sees an owner it cannot read.
      if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EINVAL', 'UNKNOWN'].includes(errorCode(error))) throw error
      return createInPlace(disk, path, text)
    }
    return true
  } catch (error) {
    throw fileWriteError(error, path)
  } finally {
    removeQuietly(disk, beside)
  }
}

function createInPlace(disk: RunFs, path: string, text: string): boolean {
  let fd: number
  try {
    fd = disk.openSync(path, 'wx')
  } catch (error) {
    if (errorCode(error) === 'EEXIST') return false
    throw error
  }
  try {
    disk.writeSync(fd, text)
  } finally {
    disk.closeSync(fd)
  }
  return true
}

/** The living owner of the file; undefined when it is free: given back, or its process is gone. */
export async function livingOwner(path: string, disk: RunFs = nodeFs): Promise<LockOwner | undefined> {
  const parsed = ownerSchema.safeParse(readJson(path))
  if (!parsed.success) {
    // Unreadable: being written on a file system without links, or left by a dead writer.
    const age = ageOf(path, disk)
    const beingTaken = { host: '', machine: '', pid: 0, startTime: '', purpose: 'being taken' }
    return age !== undefined && age < heartbeatStale ? beingTaken : undefined
  }
  const { held, ...owner } = parsed.data
  if (!held) return undefined
  const alive = await isProcessAlive(owner)
  if (alive !== undefined) return alive ? owner : undefined
  const age = ageOf(path, disk)
  return age !== undefined && age < heartbeatStale ? owner : undefined
}

/** Milliseconds since the file was touched, by the clock of its own file system where it can be asked. */
function ageOf(path: string, disk: RunFs): number | undefined {
  const probe = temporaryName(path)
  try {
    const touched = fs.statSync(path).mtimeMs
    try {
      disk.closeSync(disk.openSync(probe, 'wx'))
      return fs.statSync(probe).mtimeMs - touched
    } catch {
      return Date.now() - touched
    } finally {
      removeQuietly(disk, probe)
    }
  } catch {
    return undefined
  }
}

/** What a lock file or a queue ticket of this process says. */
export async function ownerText(purpose: string, held = true): Promise<string> {
  return JSON.stringify({ ...(await thisProcess()), held, purpose })
}

/**
 * A lock that one process at a time can own, as numbered files in a folder: the highest number is the lock. Taking it over
 * from a dead owner creates the next number, which only one process can do; lower numbers are removed only afterwards and
 * the highest is never removed, so a slow competitor that saw an old state finds a higher number and stands back.
 */
export class ExclusiveLock {
  readonly #folder: string
  readonly #generation: number
  readonly #disk: RunFs
  readonly #text: string
  #released = false

  private constructor(folder: string, generation: number, text: string, disk: RunFs) {
    this.#folder = folder
    this.#generation = generation
    this.#text = text
    this.#disk = disk
  }

  /** Takes the lock, or says who has it. */
  static async acquire(folder: string, purpose: string, disk: RunFs = nodeFs): Promise<ExclusiveLock | LockOwner> {
    const text = await ownerText(purpose)
    try {
      disk.mkdirSync(folder, { recursive: true })
    } catch (error) {
      throw fileWriteError(error, folder)
    }
    for (;;) {
      const highest = highestGeneration(folder)
      if (highest > 0) {
        const owner = await livingOwner(join(folder, generationName(highest)), disk)
        if (owner !== undefined && highestGeneration(folder) === highest) return owner
      }
      const generation = highest + 1
      const path = join(folder, generationName(generation))
      if (!createExclusively(disk, path, text)) continue
      if (highestGeneration(folder) !== generation) {
        removeQuietly(disk, path)
        continue
      }
      sweepOld(folder, disk)
      for (let old = highest; old > 0 && old > highest - 8; old--) removeQuietly(disk, join(folder, generationName(old)))
      return new ExclusiveLock(folder, generation, text, disk)
    }
  }

  /** The living owner, without taking the lock. */
  static async owner(folder: string): Promise<LockOwner | undefined> {
    const highest = highestGeneration(folder)
    return highest === 0 ? undefined : livingOwner(join(folder, generationName(highest)))
  }

  /** Whether the lock is still this one's: false after another process took it over for dead. */
  get isHeld(): boolean {
    return !this.#released && highestGeneration(this.#folder) === this.#generation
  }

  /**
   * Shows processes of other machines that the owner lives. A lock whose folder was swept away (a runtime folder at
   * logout) is put back unless someone else has one by now.
   */
  touch(): void {
    if (this.#released) return
    const path = join(this.#folder, generationName(this.#generation))
    try {
      const now = new Date()
      fs.utimesSync(path, now, now)
    } catch {
      try {
        this.#disk.mkdirSync(this.#folder, { recursive: true })
        if (highestGeneration(this.#folder) === 0) createExclusively(this.#disk, path, this.#text)
      } catch {
        // The next touch tries again.
      }
    }
  }

  /** Gives the lock back. */
  release(): void {
    if (this.#released) return
    const held = this.isHeld
    this.#released = true
    if (!held) return
    const path = join(this.#folder, generationName(this.#generation))
    try {
      const text = this.#text.replace('"held":true', '"held":false')
      writeFileAtomic(path, text, { disk: this.#disk, durable: false })
    } catch {
      this.#expire(path)
    }
  }

  /** On a full disk there is no room for a new file: the old one is emptied and dated back, which reads as free. */
  #expire(path: string): void {
    try {
      fs.truncateSync(path, 0)
      fs.utimesSync(path, 0, 0)
    } catch {
      // It becomes free when this process ends.
    }
  }
}

/** Removes what processes left that died while they tried to take the lock. */
function sweepOld(folder: string, disk: RunFs): void {
  for (const name of readNames(folder)) {
    const path = join(folder, name)
    if (name.startsWith(temporaryPrefix) && (ageOf(path, disk) ?? 0) > heartbeatStale) removeQuietly(disk, path)
  }
}
