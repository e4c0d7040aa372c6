import fs from 'node:fs'
import { open, readdir, readFile, stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import type { Heartbeat, RunStatus, ShownState } from '#shared/runState.ts'
import { canResume, heartbeatSchema, isBeating, shownState } from '#shared/runState.ts'
import type { CheckpointInfo } from './checkpoints.ts'
import { listCheckpoints, newestCheckpoint } from './checkpoints.ts'
import { errorCode, readJson } from './files.ts'
import type { MetricsCursor, MetricsRead } from './metricsFile.ts'
import { readMetricsFile } from './metricsFile.ts'
import { isProcessAlive } from './processInfo.ts'
import { parseStatus, readStatusFile, runFiles } from './runFiles.ts'

/** A run as a list or a panel shows it. */
export interface RunView {
  readonly dir: string
  readonly status: RunStatus
  /** The state to show: `interrupted` when the process was lost. */
  readonly state: ShownState
  /** A process works on the run (or waits, when queued or paused): it can be asked through its control socket. */
  readonly alive: boolean
  /** Whether the run can be started again from its newest checkpoint. */
  readonly resumable: boolean
  readonly heartbeat: Heartbeat | undefined
  readonly checkpoint: CheckpointInfo | undefined
}

export type RunAspect = 'status' | 'liveness' | 'metrics' | 'log' | 'checkpoints'

export interface WatchOptions {
  /** Milliseconds between two looks where the system sends no notice of changes (network drives). */
  readonly interval?: number
  /** Milliseconds for which changes are collected before the listener hears of them. */
  readonly settle?: number
}

/** Reads a run's directory while it is being written, or afterwards. Takes no lock and writes nothing. */
export class RunReader {
  readonly dir: string

  constructor(dir: string) {
    this.dir = resolve(dir)
  }

  /** A reader for a folder that is a run; RUN_INVALID when it is not. */
  static open(dir: string): RunReader {
    readStatusFile(dir)
    return new RunReader(dir)
  }

  /** status.json as it stands; `view()` also knows whether the process lives. */
  async status(): Promise<RunStatus> {
    const path = join(this.dir, runFiles.status)
    try {
      return parseStatus(await readFile(path, 'utf8'), path)
    } catch (error) {
      // Windows refuses the moment in which the file is replaced; a missing file gets its full message here.
      if (errorCode(error) === '') throw error
      return readStatusFile(this.dir)
    }
  }

  heartbeat(): Heartbeat | undefined {
    const parsed = heartbeatSchema.safeParse(readJson(join(this.dir, runFiles.heartbeat)))
    return parsed.success ? parsed.data : undefined
  }

  /** Whether a process works on the run. */
  async isAlive(): Promise<boolean> {
    const heartbeat = this.heartbeat()
    return heartbeat !== undefined && isBeating(heartbeat, await isProcessAlive(heartbeat), Date.now())
  }

  async view(): Promise<RunView> {
    // Liveness first: a process that ends in between has written its last status before.
    const heartbeat = this.heartbeat()
    const alive = heartbeat !== undefined && isBeating(heartbeat, await isProcessAlive(heartbeat), Date.now())
    const status = await this.status()
    const state = shownState(status, alive, Date.now())
    const checkpoint = newestCheckpoint(join(this.dir, runFiles.checkpoints))
    const resumable = canResume(state, alive, checkpoint !== undefined)
    return { dir: this.dir, status, state, alive, resumable, heartbeat, checkpoint }
  }

  /** The frozen recipe's text. */
  recipe(): Promise<string> {
    return readFile(join(this.dir, runFiles.recipe), 'utf8')
  }

  /** Complete checkpoints, oldest first. */
  checkpoints(): CheckpointInfo[] {
    return listCheckpoints(join(this.dir, runFiles.checkpoints))
  }

  /** The metrics after the cursor, in portions of bounded size: call again with the new cursor while `more` is true. */
  readMetrics(cursor?: MetricsCursor, limit?: number): Promise<MetricsRead> {
    return readMetricsFile(join(this.dir, runFiles.metrics), cursor, limit)
  }

  /** The last lines of log.txt, or of another text file of the run. */
  tail(lines: number, file: 'log' | 'stdout' = 'log'): Promise<string> {
    return readTail(join(this.dir, runFiles[file]), lines)
  }

  /** Tells the listener what has changed, until disposed. Works where file notifications do not, by looking. */
  watch(listener: (changed: ReadonlySet<RunAspect>) => void, options: WatchOptions = {}): { dispose(): void } {
    return new RunWatcher(this, listener, options)
  }
}

/** The last `lines` lines of a text file, of at most 64 KiB; empty when there is none. */
export async function readTail(path: string, lines: number): Promise<string> {
  let file
  try {
    file = await open(path, 'r')
  } catch {
    return ''
  }
  try {
    const { size } = await file.stat()
    const start = Math.max(0, size - 64 * 1024)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(size - start), 0, size - start, start)
    return buffer.toString('utf8', 0, bytesRead).trimEnd().split('\n').slice(-lines).join('\n')
  } finally {
    await file.close()
  }
}

/** The runs in a folder, newest first. Folders that are not runs, or are damaged, are left out. */
export async function listRuns(parent: string): Promise<RunView[]> {
  const entries = await readdir(parent, { withFileTypes: true }).catch(() => [])
  const dirs = entries.filter((entry) => !entry.isFile() && !entry.name.startsWith('.')).map((entry) => join(parent, entry.name))
  const views = await Promise.all(dirs.map((dir) => new RunReader(dir).view().catch(() => undefined)))
  return views
    .filter((view) => view !== undefined)
    .sort((a, b) => compare(b.status.createdAt, a.status.createdAt) || compare(basename(b.dir), basename(a.dir)))
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

/** A process elsewhere is looked up at most this often, in milliseconds. */
const livenessInterval = 3_000

class RunWatcher {
  readonly #reader: RunReader
  readonly #listener: (changed: ReadonlySet<RunAspect>) => void
  readonly #settle: number
  readonly #poll: NodeJS.Timeout
  readonly #signatures = new Map<RunAspect, string>()
  #watchers: fs.FSWatcher[] = []
  #soon: NodeJS.Timeout | undefined
  #looking: Promise<void> | undefined
  #lastLiveness = 0
  #disposed = false

  constructor(reader: RunReader, listener: (changed: ReadonlySet<RunAspect>) => void, options: WatchOptions) {
    this.#reader = reader
    this.#listener = listener
    this.#settle = options.settle ?? 50
    this.#look(false)
    this.#poll = setInterval(() => this.#look(true), options.interval ?? 1_000)
    this.#poll.unref()
    this.#subscribe(reader.dir)
  }

  dispose(): void {
    this.#disposed = true
    clearInterval(this.#poll)
    clearTimeout(this.#soon)
    for (const watcher of this.#watchers) watcher.close()
    this.#watchers = []
  }

  #subscribe(folder: string): void {
    try {
      const watcher = fs.watch(folder, { persistent: false }, () => {
        if (this.#disposed || this.#soon !== undefined) return
        this.#soon = setTimeout(() => {
          this.#soon = undefined
          this.#look(true)
        }, this.#settle)
      })
      watcher.on('error', () => watcher.close())
      this.#watchers.push(watcher)
    } catch {
      // No notifications here, or none left: looking at intervals does it.
    }
  }

  #look(notify: boolean): void {
    this.#looking ??= this.#compare(notify).finally(() => (this.#looking = undefined))
  }

  async #compare(notify: boolean): Promise<void> {
    const changed = new Set<RunAspect>()
    const note = (aspect: RunAspect, signature: string): void => {
      if (this.#signatures.get(aspect) !== signature) changed.add(aspect)
      this.#signatures.set(aspect, signature)
    }
    for (const aspect of ['status', 'metrics', 'log', 'checkpoints'] as const) {
      note(aspect, await signatureOf(join(this.#reader.dir, runFiles[aspect])))
    }
    if (Date.now() - this.#lastLiveness >= livenessInterval || changed.has('status')) {
      this.#lastLiveness = Date.now()
      note('liveness', String(await this.#reader.isAlive().catch(() => false)))
    }
    if (notify && changed.size > 0 && !this.#disposed) this.#listener(changed)
  }
}

async function signatureOf(path: string): Promise<string> {
  try {
    const { ino, size, mtimeMs } = await stat(path)
    return `${ino}:${size}:${mtimeMs}`
  } catch {
    return ''
  }
}
