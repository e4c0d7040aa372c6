import { resolve } from 'node:path'
import { describeError } from '#shared/errors.ts'
import type { GpuFigures, RunInfo } from '#shared/panelProtocol.ts'
import { newStatus } from '#shared/runState.ts'
import type { MetricsCursor } from '../../engine/run/metricsFile.ts'
import type { RunAspect, RunView, WatchOptions } from '../../engine/run/runReader.ts'
import { RunReader } from '../../engine/run/runReader.ts'
import { RunSeries, type SeriesTable } from './runSeries.ts'

export interface Disposable {
  dispose(): void
}

/** A run that a panel can show: its metrics in memory and what its header says. */
export interface TrackedRun {
  /** The run directory, absolute. */
  readonly dir: string
  readonly series: RunSeries
  info(): RunInfo
  /** Called after metrics or the status have changed. */
  onDidChange(listener: () => void): Disposable
}

/** Bytes of metrics.jsonl read in one go: a few tens of milliseconds of work. */
const portion = 2 << 20

/**
 * Follows one run directory, whoever writes it: reads what is appended to metrics.jsonl, and the status. Any number of
 * trackers, also in other windows, can follow the same run, because none of them writes.
 */
export class RunTracker implements TrackedRun {
  readonly dir: string
  readonly series = new RunSeries()
  /** Settles when everything that was there at the beginning has been read. Never rejects: problems stand in `info()`. */
  readonly loaded: Promise<void>
  readonly #reader: RunReader
  readonly #listeners = new Set<() => void>()
  readonly #watcher: Disposable
  #view: RunView | undefined
  #problem: string | undefined
  #missing = false
  #loading = true
  #cursor: MetricsCursor | undefined
  #work: Promise<void> = Promise.resolve()
  #wanted = new Set<RunAspect>()
  #disposed = false

  constructor(dir: string, options: WatchOptions = {}) {
    this.dir = resolve(dir)
    this.#reader = new RunReader(this.dir)
    this.#watcher = this.#reader.watch((changed) => this.#want(changed), { settle: 150, ...options })
    this.loaded = this.refresh()
  }

  onDidChange(listener: () => void): Disposable {
    this.#listeners.add(listener)
    return { dispose: () => this.#listeners.delete(listener) }
  }

  dispose(): void {
    this.#disposed = true
    this.#watcher.dispose()
    this.#listeners.clear()
  }

  /** Reads everything new now. */
  refresh(): Promise<void> {
    this.#want(new Set(['status', 'metrics']))
    return this.#work
  }

  /** The run as the header shows it. */
  info(): RunInfo {
    const { series } = this
    const status = this.#view?.status ?? newStatus(nameOf(this.dir), new Date(0))
    const loss = series.steps.last('loss')
    const evalLoss = series.evals.last('eval_loss')
    // Metrics are appended at every step, the status once a second: the newer one counts.
    const ahead = series.steps.length > 0 && series.steps.last('step') >= status.step
    const rate = series.steps.last('tokens_per_second')
    const memory = series.steps.last('memory_bytes')
    const epoch = series.steps.last('epoch')
    return {
      id: this.dir,
      name: status.name,
      state: this.#missing || this.#view === undefined ? 'missing' : this.#view.state,
      detail: status.detail,
      alive: this.#view?.alive ?? false,
      resumable: !this.#missing && (this.#view?.resumable ?? false),
      step: ahead ? series.steps.last('step') : status.step,
      totalSteps: status.totalSteps,
      epoch: ahead ? (finite(epoch) ?? status.epoch) : status.epoch,
      loss: ahead ? finite(loss) : status.loss,
      evalLoss: finite(evalLoss) ?? status.evalLoss,
      bestEvalLoss: lowest(series.evals.column('eval_loss'), series.evals.length),
      tokensPerSecond: ahead ? finite(rate) : status.tokensPerSecond,
      etaSeconds: status.etaSeconds,
      startedAt: time(status.startedAt),
      endedAt: time(status.endedAt),
      updatedAt: time(status.updatedAt),
      attempt: status.attempt,
      error: status.error,
      warnings: status.warnings,
      outputs: status.outputs,
      device: status.device,
      model: status.model,
      dataset: status.dataset,
      method: status.method,
      plannedBytes: status.plannedBytes,
      measuredBytes: finite(memory),
      gpu: gpuFigures(series.steps),
      checkpointStep: this.#view?.checkpoint?.step ?? null,
      nonFiniteSteps: series.nonFiniteCount,
      rows: series.steps.length,
      loading: this.#loading,
      invalidLines: series.invalidLines,
      problem: this.#problem ?? null,
    }
  }

  /** At most `count` values of the training loss, means of equal parts of the run: for a sparkline. */
  sketch(count: number): number[] {
    const { length } = this.series.steps
    const loss = this.series.steps.column('loss')
    if (loss === undefined || length === 0) return []
    const parts = Math.min(count, length)
    const means: number[] = []
    for (let part = 0; part < parts; part++) {
      let sum = 0
      let number = 0
      for (let i = Math.floor((part * length) / parts); i < Math.floor(((part + 1) * length) / parts); i++) {
        if (!Number.isFinite(loss[i])) continue
        sum += loss[i]!
        number++
      }
      if (number > 0) means.push(sum / number)
    }
    return means
  }

  /** Adds to what is to be read, and reads it after what is being read. */
  #want(aspects: ReadonlySet<RunAspect>): void {
    const idle = this.#wanted.size === 0
    for (const aspect of aspects) this.#wanted.add(aspect)
    if (idle && this.#wanted.size > 0) this.#work = this.#work.then(() => this.#read())
  }

  async #read(): Promise<void> {
    const wanted = this.#wanted
    this.#wanted = new Set()
    if (this.#disposed) return
    try {
      if (wanted.has('status') || wanted.has('liveness') || wanted.has('checkpoints')) this.#view = await this.#reader.view()
      this.#missing = false
      this.#problem = undefined
      if (wanted.has('metrics') && !this.#disposed) await this.#readMetrics()
    } catch (error) {
      this.#problem = describeError(error)
      // A run that was there keeps its curves: the picture is all that is left of it.
      this.#missing = await this.#isGone()
    }
    this.#loading = false
    this.#notify()
  }

  async #readMetrics(): Promise<void> {
    for (;;) {
      const read = await this.#reader.readMetrics(this.#cursor, portion)
      if (this.#disposed) return
      if (read.reset) this.series.clear()
      this.#cursor = read.cursor
      this.series.append(read)
      if (!read.more) return
      this.#notify()
      // A long file must not keep the editor waiting.
      await new Promise((resume) => setImmediate(resume))
    }
  }

  async #isGone(): Promise<boolean> {
    try {
      await this.#reader.status()
      return false
    } catch {
      return true
    }
  }

  #notify(): void {
    if (!this.#disposed) for (const listener of this.#listeners) listener()
  }
}

/** The trackers of this window: one for every run directory, shared by all that show it. */
export class RunTrackers implements Disposable {
  readonly #trackers = new Map<string, { readonly tracker: RunTracker; users: number }>()
  readonly #options: WatchOptions

  constructor(options: WatchOptions = {}) {
    this.#options = options
  }

  /** The tracker of a run directory, until `dispose` of the answer is called. */
  acquire(dir: string): { readonly tracker: RunTracker } & Disposable {
    const path = resolve(dir)
    let entry = this.#trackers.get(path)
    if (entry === undefined) this.#trackers.set(path, (entry = { tracker: new RunTracker(path, this.#options), users: 0 }))
    const shared = entry
    shared.users++
    let released = false
    return {
      tracker: shared.tracker,
      dispose: () => {
        if (released) return
        released = true
        if (--shared.users > 0) return
        shared.tracker.dispose()
        if (this.#trackers.get(path) === shared) this.#trackers.delete(path)
      },
    }
  }

  dispose(): void {
    for (const { tracker } of this.#trackers.values()) tracker.dispose()
    this.#trackers.clear()
  }
}

/** What the last step says of the GPU. */
function gpuFigures(steps: SeriesTable): GpuFigures | null {
  const last = (key: string): number | null => finite(steps.last(key))
  const figures = {
    utilization: last('gpu_utilization'),
    memoryBytes: last('gpu_memory_bytes'),
    temperature: last('gpu_temperature'),
    power: last('gpu_power'),
  }
  return Object.values(figures).every((value) => value === null) ? null : figures
}

const finite = (value: number): number | null => (Number.isFinite(value) ? value : null)
const time = (text: string | null): number | null => (text === null ? null : finite(Date.parse(text)))
const nameOf = (dir: string): string =>
  dir
    .split(/[\\/]/)
    .filter((part) => part !== '')
    .at(-1) ?? dir

function lowest(values: Float64Array | undefined, length: number): number | null {
  let best = Infinity
  for (let i = 0; i < length; i++) if (values![i]! < best) best = values![i]!
  return finite(best)
}
