import type { EventRecord, MetricBatch, MetricColumns } from '#shared/metrics.ts'
import type { RunInfo } from '#shared/panelProtocol.ts'
import { RunSeries } from '../../src/training/runSeries.ts'
import type { Disposable, TrackedRun } from '../../src/training/runTracker.ts'

export interface SampleOptions {
  readonly steps: number
  readonly seed?: number
  /** Steps between two evaluations. */
  readonly evalEvery?: number
  readonly checkpointEvery?: number
  readonly nonFinite?: readonly number[]
  readonly gpu?: boolean
  readonly info?: Partial<RunInfo>
}

/** Milliseconds per step. */
const stepTime = 800

/** Numbers in [0, 1), the same for the same seed (Numerical Recipes' linear congruence). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0
  return () => (state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32
}

/** A run in memory that looks like a real one and grows on demand. */
export class SampleRun implements TrackedRun {
  readonly dir: string
  readonly series = new RunSeries()
  readonly #options: SampleOptions
  readonly #listeners = new Set<() => void>()
  readonly #random: () => number
  readonly #start: number
  #info: RunInfo

  constructor(dir: string, options: SampleOptions) {
    this.dir = dir
    this.#options = options
    this.#random = randomNumbers(options.seed ?? 1)
    this.#start = Date.now() - options.steps * stepTime
    this.#info = {
      id: dir,
      name: dir.split('/').at(-1)!,
      state: 'training',
      detail: null,
      alive: true,
      resumable: false,
      step: 0,
      totalSteps: options.steps * 2,
      epoch: 0,
      loss: null,
      evalLoss: null,
      bestEvalLoss: null,
      tokensPerSecond: null,
      etaSeconds: 1_080,
      startedAt: this.#start,
      endedAt: null,
      updatedAt: this.#start,
      attempt: 1,
      error: null,
      warnings: [],
      outputs: [],
      device: 'cpu',
      model: 'stories260k',
      dataset: 'train.jsonl',
      method: 'lora',
      plannedBytes: 2.4 * 2 ** 30,
      measuredBytes: null,
      gpu: null,
      checkpointStep: null,
      nonFiniteSteps: 0,
      rows: 0,
      loading: false,
      invalidLines: 0,
      problem: null,
      ...options.info,
    }
    this.append({ type: 'event', event: 'start', step: 0, time: this.#start })
    this.grow(options.steps)
    // The state that the test asked for stays, whatever the curves say.
    this.setInfo(options.info ?? {})
  }

  info(): RunInfo {
    return this.#info
  }

  setInfo(info: Partial<RunInfo>): void {
    this.#info = { ...this.#info, ...info }
    this.#changed()
  }

  onDidChange(listener: () => void): Disposable {
    this.#listeners.add(listener)
    return { dispose: () => this.#listeners.delete(listener) }
  }

  get listeners(): number {
    return this.#listeners.size
  }

  append(...events: readonly EventRecord[]): void {
    this.series.append({ ...emptyBatch, events })
    this.#changed()
  }

  /** Adds steps at the end. */
  grow(count: number): void {
    const { evalEvery = 0, checkpointEvery = 0, nonFinite = [], gpu = false, steps: total } = this.#options
    const first = this.series.steps.length
    const random = this.#random
    const column = (): Float64Array => new Float64Array(count)
    const columns = {
      step: column(),
      epoch: column(),
      loss: column(),
      learning_rate: column(),
      grad_norm: column(),
      num_tokens: column(),
      tokens_per_second: column(),
      time: column(),
      memory_bytes: column(),
      ...(gpu ? { gpu_utilization: column(), gpu_temperature: column(), gpu_power: column() } : {}),
    }
    const evals: number[] = []
    const events: EventRecord[] = []
    const curve = (step: number): number => 1.1 + 2.4 * Math.exp((-4 * step) / total) + 0.9 * Math.exp((-60 * step) / total)
    for (let i = 0; i < count; i++) {
      const step = first + i + 1
      const noise = random() + random() + random() - 1.5
      const bad = nonFinite.includes(step)
      columns.step[i] = step
      columns.epoch[i] = (3 * step) / total
      columns.loss[i] = bad ? NaN : curve(step) * (1 + 0.12 * noise) + (random() < 0.002 ? 3 : 0)
      columns.learning_rate[i] = 1e-4 * Math.min(1, step / (total * 0.05)) * (1 + Math.cos((Math.PI * step) / (2 * total)))
      columns.grad_norm[i] = bad ? NaN : 0.8 + 0.5 * random() + 2 * Math.exp((-10 * step) / total) * random()
      columns.num_tokens[i] = step * 4_096
      columns.tokens_per_second[i] = 5_200 + 600 * noise
      columns.time[i] = this.#start + step * stepTime
      columns.memory_bytes[i] = (1.9 + 0.25 * Math.min(1, step / 40)) * 2 ** 30
      if (gpu) {
        columns.gpu_utilization![i] = Math.min(100, 92 + 8 * noise)
        columns.gpu_temperature![i] = 58 + 8 * Math.min(1, step / 300) + noise
        columns.gpu_power![i] = 610 + 60 * noise
      }
      if (bad)
        events.push({ type: 'event', event: 'non_finite', step, time: columns.time[i]!, message: `loss is NaN in step ${step}` })
      if (evalEvery > 0 && step % evalEvery === 0) evals.push(step)
      if (checkpointEvery > 0 && step % checkpointEvery === 0)
        events.push({ type: 'event', event: 'checkpoint', step, time: columns.time[i]! })
    }
    const steps: MetricColumns = { length: count, columns }
    const evalLoss = Float64Array.from(evals, (step) => curve(step) * 1.06 + 0.02 * random())
    this.series.append({
      steps,
      events,
      invalid: 0,
      evals: { length: evals.length, columns: { step: Float64Array.from(evals), eval_loss: evalLoss } },
    })
    const { series } = this
    const last = (key: string): number | null => (Number.isFinite(series.steps.last(key)) ? series.steps.last(key) : null)
    this.setInfo({
      step: last('step') ?? 0,
      epoch: last('epoch'),
      loss: last('loss'),
      tokensPerSecond: last('tokens_per_second'),
      measuredBytes: last('memory_bytes'),
      gpu:
        this.#options.gpu !== true
          ? null
          : {
              utilization: last('gpu_utilization'),
              memoryBytes: null,
              temperature: last('gpu_temperature'),
              power: last('gpu_power'),
            },
      evalLoss: Number.isFinite(series.evals.last('eval_loss')) ? series.evals.last('eval_loss') : null,
      rows: series.steps.length,
      nonFiniteSteps: series.nonFiniteCount,
      checkpointStep: checkpointEvery > 0 ? Math.floor((first + count) / checkpointEvery) * checkpointEvery || null : null,
      updatedAt: this.#start + (first + count) * stepTime,
    })
  }

  #changed(): void {
    for (const listener of this.#listeners) listener()
  }
}

const noRows: MetricColumns = { length: 0, columns: { step: new Float64Array(0) } }
const emptyBatch: MetricBatch = { steps: noRows, evals: noRows, events: [], invalid: 0 }
