import fs from 'node:fs'
import { basename, isAbsolute, join, relative, resolve } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import type { StatusPatch } from '#shared/runState.ts'
import { newStatus } from '#shared/runState.ts'
import { ExclusiveLock } from './exclusiveLock.ts'
import type { RunFs } from './files.ts'
import { fileWriteError, nodeFs, syncFolder, temporaryName, writeFileAtomic } from './files.ts'
import { redact } from './redact.ts'
import { readStatusFile, runFiles } from './runFiles.ts'
import { RunReader } from './runReader.ts'
import { RunWriter } from './runWriter.ts'

export interface CreateRunOptions {
  /** First values of the status: model, dataset, method, … */
  readonly status?: StatusPatch
  readonly now?: Date
  readonly disk?: RunFs
}

export interface LockOptions {
  readonly disk?: RunFs
  /** Called once when another process took this one for dead and took the directory over: nothing may be written any more. */
  readonly onLost?: () => void
}

/** `2026-11-21_14-03-05_stories260k`: sorts by time, says what it is, is a valid name on every system. */
export function runFolderName(name: string, now: Date): string {
  const two = (value: number): string => String(value).padStart(2, '0')
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`
  const time = `${two(now.getHours())}-${two(now.getMinutes())}-${two(now.getSeconds())}`
  const readable = name
    .normalize('NFKD')
    .replace(/[^A-Za-z0-9._-]+/g, '-')
    .replace(/^[-._]+|[-._]+$/g, '')
    .slice(0, 60)
  return `${date}_${time}_${readable === '' ? 'run' : readable.replace(/[-._]+$/, '')}`
}

/** The directory that holds everything about one run. Reading needs no lock; writing goes through `lock()`. */
export class RunDirectory {
  /** Absolute. */
  readonly dir: string

  private constructor(dir: string) {
    this.dir = dir
  }

  /**
   * Makes a new run in `parent`, under a name made of time and `name`; it appears complete, with its frozen recipe and a
   * queued status. The recipe's paths should be absolute: the run may be resumed from anywhere.
   */
  static create(parent: string, name: string, recipeText: string, options: CreateRunOptions = {}): RunDirectory {
    const { now = new Date(), disk = nodeFs } = options
    const folder = resolve(parent)
    const wanted = runFolderName(name, now)
    const draft = temporaryName(join(folder, wanted))
    try {
      makeFolder(draft, disk)
      writeNew(draft, name, recipeText, now, options, disk)
      for (let attempt = 1; ; attempt++) {
        const dir = join(folder, attempt === 1 ? wanted : `${wanted}-${attempt}`)
        if (fs.existsSync(dir)) continue
        try {
          disk.renameSync(draft, dir)
        } catch (error) {
          if (fs.existsSync(dir)) continue // Another process was quicker.
          throw error
        }
        syncFolder(disk, folder)
        return new RunDirectory(dir)
      }
    } catch (error) {
      fs.rmSync(draft, { recursive: true, force: true })
      throw fileWriteError(error, join(folder, wanted))
    }
  }

  /** Makes a run in exactly this folder, for an output folder that the user named. RUN_BUSY when it holds a run already. */
  static async createAt(dir: string, name: string, recipeText: string, options: CreateRunOptions = {}): Promise<RunDirectory> {
    const { now = new Date(), disk = nodeFs } = options
    const run = new RunDirectory(resolve(dir))
    const lock = await run.#acquire(disk)
    try {
      if (fs.existsSync(run.path('status'))) {
        throw new UnslothError('RUN_BUSY', `${run.dir}: there is a run in this folder already.`, {
          hint: 'Resume it, or choose another output folder.',
        })
      }
      writeNew(run.dir, name, recipeText, now, options, disk)
      return run
    } finally {
      lock.release()
    }
  }

  /** An existing run; RUN_INVALID when the folder is not one. */
  static open(dir: string): RunDirectory {
    const run = new RunDirectory(resolve(dir))
    readStatusFile(run.dir)
    return run
  }

  /** Whether the folder looks like a run, without reading it. */
  static isRun(dir: string): boolean {
    return fs.existsSync(join(dir, runFiles.status)) && fs.existsSync(join(dir, runFiles.recipe))
  }

  /** The path of one of the run's files or folders. */
  path(file: keyof typeof runFiles): string {
    return join(this.dir, runFiles[file])
  }

  reader(): RunReader {
    return new RunReader(this.dir)
  }

  /** The frozen recipe's text. */
  recipe(): string {
    try {
      return fs.readFileSync(this.path('recipe'), 'utf8')
    } catch (error) {
      throw new UnslothError('RUN_INVALID', `${this.path('recipe')}: the frozen recipe cannot be read.`, {
        hint: 'The run cannot be resumed without it; start a new run from your recipe.',
        cause: error,
      })
    }
  }

  /**
   * Makes this process the only writer, clears what a dead writer left, and starts the heartbeat. RUN_BUSY names the
   * owner when there is a living one.
   */
  async lock(options: LockOptions = {}): Promise<RunWriter> {
    const { disk = nodeFs } = options
    const lock = await this.#acquire(disk)
    try {
      return await RunWriter.start(this, lock, disk, options.onLost)
    } catch (error) {
      lock.release()
      throw error
    }
  }

  async #acquire(disk: RunFs): Promise<ExclusiveLock> {
    const lock = await ExclusiveLock.acquire(this.path('lock'), `run ${basename(this.dir)}`, disk)
    if (lock instanceof ExclusiveLock) return lock
    const who = lock.pid === 0 ? 'another process' : `process ${lock.pid} on ${lock.host}`
    throw new UnslothError('RUN_BUSY', `${this.dir}: ${who} is working on this run.`, {
      hint: 'Watch it or stop it, or start a run of your own in another folder.',
    })
  }

  /** The path as status.json keeps it: relative inside the run, else absolute. */
  relative(path: string): string {
    const inside = relative(this.dir, resolve(this.dir, path))
    return inside.startsWith('..') || isAbsolute(inside) ? resolve(this.dir, path) : inside
  }
}

function makeFolder(path: string, disk: RunFs): void {
  try {
    disk.mkdirSync(path, { recursive: true })
  } catch (error) {
    throw fileWriteError(error, path)
  }
}

/** status.json is written last: it makes the folder a run. */
function writeNew(dir: string, name: string, recipe: string, now: Date, options: CreateRunOptions, disk: RunFs): void {
  writeFileAtomic(join(dir, runFiles.recipe), redact(recipe), { disk })
  writeFileAtomic(join(dir, runFiles.status), `${JSON.stringify(newStatus(name, now, options.status), null, 2)}\n`, { disk })
}
