import { resolve } from 'node:path'
import type { ShownState } from '#shared/runState.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { RunReader, type RunView } from '../../engine/run/runReader.ts'

/** A run has come to an end, or its process was lost. */
export interface RunEnding {
  readonly view: RunView
  readonly before: ShownState
}

interface Followed {
  view: RunView
  watcher: { dispose(): void } | undefined
}

export interface RunRegistryOptions {
  /** Finds run directories: those of the workspace and those remembered. */
  readonly find: () => Promise<readonly string[]>
  /** Runs that were live when the editor last looked: their end while nobody watched is told as well. */
  readonly wereLive?: readonly string[]
  readonly onLive?: (dirs: readonly string[]) => void
}

/** States in which somebody has to do nothing but wait. */
const isOver = (state: ShownState): boolean =>
  state === 'finished' || state === 'failed' || state === 'stopped' || state === 'interrupted'

/**
 * All runs that this window knows, live and past. Reads run directories only, so every window sees the same; live runs are
 * followed closely, others when something says that they changed.
 */
export class RunRegistry {
  readonly #options: RunRegistryOptions
  readonly #runs = new Map<string, Followed>()
  readonly #changeListeners = new Set<(dir: string | undefined) => void>()
  readonly #endListeners = new Set<(ending: RunEnding) => void>()
  readonly #wereLive: Set<string>
  readonly #updating = new Map<string, Promise<void>>()
  #scan: Promise<void> | undefined
  #scanAgain = false
  #disposed = false

  constructor(options: RunRegistryOptions) {
    this.#options = options
    this.#wereLive = new Set(options.wereLive)
  }

  /** Newest first. */
  get views(): readonly RunView[] {
    return [...this.#runs.values()]
      .map(({ view }) => view)
      .sort((a, b) => order(b.status.createdAt, a.status.createdAt) || order(b.dir, a.dir))
  }

  /** Runs that go on: waiting, working or paused. */
  get live(): readonly RunView[] {
    return this.views.filter(({ state }) => !isOver(state))
  }

  /** Whether changes of the run are noticed without being told. */
  isFollowed(dir: string): boolean {
    return this.#runs.get(resolve(dir))?.watcher !== undefined
  }

  get(dir: string): RunView | undefined {
    return this.#runs.get(resolve(dir))?.view
  }

  /** `undefined`: runs came or went. */
  onDidChange(listener: (dir: string | undefined) => void): { dispose(): void } {
    this.#changeListeners.add(listener)
    return { dispose: () => this.#changeListeners.delete(listener) }
  }

  onDidEnd(listener: (ending: RunEnding) => void): { dispose(): void } {
    this.#endListeners.add(listener)
    return { dispose: () => this.#endListeners.delete(listener) }
  }

  /** Looks for runs again. Calls during a look lead to one more. */
  async refresh(): Promise<void> {
    if (this.#scan !== undefined) {
      this.#scanAgain = true
      return this.#scan
    }
    this.#scan = this.#look().finally(() => (this.#scan = undefined))
    await this.#scan
    if (this.#scanAgain && !this.#disposed) {
      this.#scanAgain = false
      await this.refresh()
    }
  }

  /** A run that has just been started here, or whose directory changed. */
  async follow(dir: string): Promise<RunView | undefined> {
    const path = resolve(dir)
    await this.#update(path)
    return this.#runs.get(path)?.view
  }

  dispose(): void {
    this.#disposed = true
    for (const { watcher } of this.#runs.values()) watcher?.dispose()
    this.#runs.clear()
    this.#changeListeners.clear()
    this.#endListeners.clear()
  }

  async #look(): Promise<void> {
    const found = new Set((await this.#options.find()).map((dir) => resolve(dir)).filter((dir) => RunDirectory.isRun(dir)))
    for (const [dir, { watcher }] of this.#runs) {
      if (found.has(dir) || RunDirectory.isRun(dir)) continue
      watcher?.dispose()
      this.#runs.delete(dir)
    }
    // A few at a time: a folder may hold hundreds of runs on a slow disk.
    const waiting = [...found]
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let dir = waiting.pop(); dir !== undefined; dir = waiting.pop()) await this.#update(dir, false)
      }),
    )
    this.#changed(undefined)
  }

  #update(dir: string, tell = true): Promise<void> {
    const earlier = this.#updating.get(dir) ?? Promise.resolve()
    const update = earlier
      .then(() => this.#read(dir, tell))
      .finally(() => {
        if (this.#updating.get(dir) === update) this.#updating.delete(dir)
      })
    this.#updating.set(dir, update)
    return update
  }

  async #read(dir: string, tell: boolean): Promise<void> {
    if (this.#disposed) return
    const known = this.#runs.get(dir)
    let view: RunView
    try {
      view = await RunReader.open(dir).view()
    } catch {
      // Deleted, or not a run any more.
      known?.watcher?.dispose()
      if (this.#runs.delete(dir)) this.#changed(undefined)
      return
    }
    if (this.#disposed) return
    const before = known?.view.state ?? (this.#wereLive.has(dir) ? 'training' : undefined)
    // A process may come and go between two looks.
    const again = known !== undefined && view.status.attempt > known.view.status.attempt
    this.#wereLive.delete(dir)
    const entry = known ?? { view, watcher: undefined }
    entry.view = view
    this.#runs.set(dir, entry)
    // A run that is started again shows its old end for a moment, and a process that is done still has to go.
    if (view.alive || !isOver(view.state))
      entry.watcher ??= new RunReader(dir).watch(() => void this.#update(dir), { settle: 150 })
    else {
      entry.watcher?.dispose()
      entry.watcher = undefined
    }
    this.#options.onLive?.([...this.#runs.values()].filter((run) => !isOver(run.view.state)).map((run) => run.view.dir))
    if (tell || known === undefined) this.#changed(known === undefined ? undefined : dir)
    if (before !== undefined && isOver(view.state) && (!isOver(before) || again))
      for (const listener of this.#endListeners) listener({ view, before })
  }

  #changed(dir: string | undefined): void {
    if (this.#disposed) return
    for (const listener of this.#changeListeners) listener(dir)
  }
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)
