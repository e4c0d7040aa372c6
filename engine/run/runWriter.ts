import fs from 'node:fs'
import { writeFile } from 'node:fs/promises'
import type { EventRecord, MetricEventKind, MetricRecord } from '#shared/metrics.ts'
import { encodeMetric } from '#shared/metrics.ts'
import type { Heartbeat, ProcessIdentity, RunFailure, RunState, RunStatus, StatusPatch } from '#shared/runState.ts'
import { checkTransition, failureOf, hasEnded, heartbeatInterval } from '#shared/runState.ts'
import { AppendFile } from './appendFile.ts'
import type { CheckpointInfo } from './checkpoints.ts'
import { CheckpointDraft, newestCheckpoint, pruneCheckpoints, recoverCheckpoints } from './checkpoints.ts'
import type { ExclusiveLock } from './exclusiveLock.ts'
import type { RunFs } from './files.ts'
import { removeQuietly, renameOver, sweepTemporaries, temporaryName, writeFileAtomic } from './files.ts'
import { cutMetricsAfter } from './metricsFile.ts'
import { thisProcess } from './processInfo.ts'
import { redact } from './redact.ts'
import type { RunDirectory } from './runDirectory.ts'
import { readStatusFile } from './runFiles.ts'

const statusText = (status: RunStatus): string => `${JSON.stringify(status, null, 2)}\n`

/** Milliseconds between two writes of status.json for progress alone. */
const progressInterval = 1_000

export type LogLevel = 'info' | 'warning' | 'error'

/**
 * The one writer of a run. States and failures are on the disk when the call returns; progress within a state is written
 * at most once a second, in the background. Metrics and log are appended at once, checkpoints appear whole or not at all.
 */
export class RunWriter {
  readonly run: RunDirectory
  readonly #lock: ExclusiveLock
  readonly #disk: RunFs
  readonly #self: ProcessIdentity
  readonly #metrics: AppendFile
  readonly #log: AppendFile
  readonly #onLost: (() => void) | undefined
  readonly #timer: NodeJS.Timeout
  #status: RunStatus
  /** Counts the writes of status.json, so that a slow background write never replaces a later one. */
  #version = 0
  #lastWrite = 0
  #pendingWrite: Promise<void> | undefined
  #dirty = false
  #lost = false
  #closed = false

  private constructor(
    run: RunDirectory,
    lock: ExclusiveLock,
    disk: RunFs,
    self: ProcessIdentity,
    onLost: (() => void) | undefined,
  ) {
    this.run = run
    this.#lock = lock
    this.#disk = disk
    this.#self = self
    this.#onLost = onLost
    this.#status = readStatusFile(run.dir)
    this.#metrics = new AppendFile(run.path('metrics'), disk)
    this.#log = new AppendFile(run.path('log'), disk)
    this.#timer = setInterval(() => this.#beat(), heartbeatInterval)
    this.#timer.unref()
  }

  /** For RunDirectory.lock(): recovers what a dead writer left and begins the heartbeat. */
  static async start(run: RunDirectory, lock: ExclusiveLock, disk: RunFs, onLost?: () => void): Promise<RunWriter> {
    const self = await thisProcess()
    sweepTemporaries(run.dir)
    recoverCheckpoints(run.path('checkpoints'))
    const writer = new RunWriter(run, lock, disk, self, onLost)
    try {
      writer.#writeHeartbeat()
      return writer
    } catch (error) {
      writer.#stop()
      throw error
    }
  }

  /** What status.json says, or will say within a second. */
  get status(): RunStatus {
    return this.#status
  }

  /** False after another process took the directory over. */
  get isOwner(): boolean {
    return !this.#lost && !this.#closed
  }

  /**
   * Begins this process's work, from whatever state the last one left: queued while it waits for its device, else
   * preparing. An earlier failure is forgotten and `attempt` counts up.
   */
  begin(state: 'queued' | 'preparing' = 'preparing', patch: StatusPatch = {}): void {
    const now = new Date().toISOString()
    this.#writeStatus({
      ...this.#status,
      state,
      detail: null,
      error: null,
      endedAt: null,
      etaSeconds: null,
      tokensPerSecond: null,
      startedAt: this.#status.startedAt ?? now,
      attempt: this.#status.attempt + 1,
      ...patch,
    })
  }

  /** Goes to a state that may follow the present one. Detail is cleared unless the patch gives one. */
  setState(state: RunState, patch: StatusPatch = {}): void {
    checkTransition(this.#status.state, state)
    const ended = hasEnded(state) ? { endedAt: new Date().toISOString(), etaSeconds: null } : {}
    this.#writeStatus({ ...this.#status, state, detail: null, ...ended, ...patch })
  }

  /** Notes progress within the state. */
  progress(patch: StatusPatch): void {
    this.#status = { ...this.#status, ...patch }
    this.#dirty = true
    if (Date.now() - this.#lastWrite >= progressInterval) this.#writeProgress()
  }

  /** Ends the run as failed and logs why. Never throws for a full disk: the failure that led here is the one to report. */
  fail(error: unknown, where: { readonly tensor?: string; readonly step?: number } = {}): RunFailure {
    const failure = failureOf(error, where)
    const hint = failure.hint === null ? null : redact(failure.hint)
    const safe: RunFailure = { ...failure, message: redact(failure.message), hint }
    try {
      this.log(safe.hint === null ? safe.message : `${safe.message}\n${safe.hint}`, 'error')
      this.appendEvent('fail', { message: safe.message })
    } catch {
      // The state below still tells.
    }
    try {
      this.#writeStatus({
        ...this.#status,
        state: 'failed',
        detail: null,
        etaSeconds: null,
        endedAt: new Date().toISOString(),
        error: safe,
      })
    } catch {
      // Readers will see the run as interrupted.
    }
    return safe
  }

  /** Adds a warning to the status, once, and to the log. */
  warn(message: string): void {
    const text = redact(message)
    this.log(text, 'warning')
    if (this.#status.warnings.includes(text)) return
    this.#writeStatus({ ...this.#status, warnings: [...this.#status.warnings, text] })
  }

  /** Adds something the run has produced: `path` is absolute or relative to the run directory. */
  addOutput(kind: string, path: string): void {
    const output = { kind, path: this.run.relative(path) }
    const others = this.#status.outputs.filter((other) => other.kind !== kind || other.path !== output.path)
    this.#writeStatus({ ...this.#status, outputs: [...others, output] })
  }

  /** Appends to metrics.jsonl. */
  appendMetrics(...records: readonly MetricRecord[]): void {
    this.#checkOwner()
    this.#metrics.append(records.map((record) => `${encodeMetric(record)}\n`).join(''))
  }

  /** Appends an event at the present step. */
  appendEvent(event: MetricEventKind, more: Partial<Pick<EventRecord, 'step' | 'message' | 'path'>> = {}): void {
    const message = more.message === undefined ? {} : { message: redact(more.message) }
    this.appendMetrics({ type: 'event', event, step: this.#status.step, time: Date.now(), ...more, ...message })
  }

  /** Appends to log.txt, one time stamp per message; further lines are indented. */
  log(message: string, level: LogLevel = 'info'): void {
    this.#checkOwner()
    const text = redact(message)
      .replace(/\r?\n$/, '')
      .replace(/\r?\n/g, '\n    ')
    this.#log.append(`${new Date().toISOString()} ${level === 'info' ? '' : `${level}: `}${text}\n`)
  }

  /** A folder to fill with the checkpoint of `step`; `commit()` puts it in place. */
  beginCheckpoint(step: number): CheckpointDraft {
    this.#checkOwner()
    this.#metrics.sync()
    return new CheckpointDraft(this.run.path('checkpoints'), step, this.#disk)
  }

  /** Keeps the newest `limit` checkpoints and those of the steps in `keep`. */
  pruneCheckpoints(limit: number, keep: readonly number[] = []): number[] {
    this.#checkOwner()
    return pruneCheckpoints(this.run.path('checkpoints'), limit, keep, this.#disk)
  }

  latestCheckpoint(): CheckpointInfo | undefined {
    return newestCheckpoint(this.run.path('checkpoints'))
  }

  /**
   * Goes back to the end of `step` (0: the beginning): records of later steps, which the lost process wrote after its last
   * checkpoint, are cut off metrics.jsonl, so the file reads as that of an uninterrupted run with a `resume` event.
   */
  resumeFrom(step: number): void {
    this.#checkOwner()
    cutMetricsAfter(this.#metrics, step)
    this.#writeStatus({ ...this.#status, step, loss: null })
    if (step > 0) this.appendEvent('resume')
  }

  /** Writes what is pending, stops the heartbeat and gives the directory back. Does not change the state. */
  async close(): Promise<void> {
    if (this.#closed) return
    await this.#pendingWrite
    try {
      if (this.#dirty && !this.#lost) this.#writeStatus(this.#status)
      this.#metrics.sync()
    } finally {
      this.#stop()
    }
  }

  #stop(): void {
    this.#closed = true
    clearInterval(this.#timer)
    this.#metrics.close()
    this.#log.close()
    if (!this.#lost) removeQuietly(this.#disk, this.run.path('heartbeat'))
    this.#lock.release()
  }

  #checkOwner(): void {
    if (this.#closed) throw new Error('the run directory has been closed')
    if (this.#lost) throw new Error(`${this.run.dir}: another process has taken this run over`)
  }

  /** The status is what the disk says: a failed write changes nothing. */
  #writeStatus(next: RunStatus): void {
    this.#checkOwner()
    const stamped = { ...next, updatedAt: new Date().toISOString() }
    this.#version++
    writeFileAtomic(this.run.path('status'), statusText(stamped), { disk: this.#disk })
    this.#status = stamped
    this.#dirty = false
    this.#lastWrite = Date.now()
  }

  /** In the background, so that a slow disk does not hold up training; a failure is left to the next real write. */
  #writeProgress(): void {
    if (this.#pendingWrite !== undefined || !this.isOwner) return
    const version = ++this.#version
    const path = this.run.path('status')
    const beside = temporaryName(path)
    this.#lastWrite = Date.now()
    this.#dirty = false
    this.#status = { ...this.#status, updatedAt: new Date().toISOString() }
    this.#pendingWrite = writeFile(beside, statusText(this.#status), { flush: true })
      .then(() => {
        if (version === this.#version && this.isOwner) renameOver(this.#disk, beside, path)
        else removeQuietly(fs, beside)
      })
      .catch(() => {
        this.#dirty = true
        removeQuietly(fs, beside)
      })
      .finally(() => (this.#pendingWrite = undefined))
  }

  #beat(): void {
    if (!this.isOwner) return
    if (!fs.existsSync(this.run.path('lock'))) return // The directory was deleted: the next write reports it.
    if (!this.#lock.isHeld) {
      this.#lost = true
      clearInterval(this.#timer)
      this.#onLost?.()
      return
    }
    this.#lock.touch()
    try {
      this.#writeHeartbeat()
    } catch {
      // A full disk: readers on this machine still see the process.
    }
    if (this.#dirty) this.#writeProgress()
  }

  #writeHeartbeat(): void {
    const beat: Heartbeat = { version: 1, ...this.#self, at: new Date().toISOString() }
    writeFileAtomic(this.run.path('heartbeat'), `${JSON.stringify(beat)}\n`, { disk: this.#disk, durable: false })
  }
}
