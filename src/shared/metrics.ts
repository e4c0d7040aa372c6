/**
 * metrics.jsonl: one JSON object per line, keys as HF's Trainer logs them, so that any tool can read the file.
 * Numbers that JSON has no word for are the strings "NaN", "Infinity" and "-Infinity".
 */

/** One logged optimizer step. Further numeric keys (rewards, GPU figures) are allowed and become columns of their own. */
export interface StepRecord {
  readonly type: 'step'
  /** Optimizer steps done, this one included. */
  readonly step: number
  readonly epoch: number
  readonly loss: number
  readonly learning_rate: number
  /** L2 norm before clipping. */
  readonly grad_norm: number
  /** Tokens seen since the beginning of the run. */
  readonly num_tokens: number
  readonly tokens_per_second: number
  /** Milliseconds since 1970. */
  readonly time: number
  /** Measured memory of the run on its device, bytes; on the CPU what the process has grown by since before the weights. */
  readonly memory_bytes?: number
  /** Of the GPU that computes, as its driver tells: share of the time that it was busy in percent, 0 to 100. */
  readonly gpu_utilization?: number
  /** Bytes in use on the GPU by all processes. */
  readonly gpu_memory_bytes?: number
  /** Degrees Celsius. */
  readonly gpu_temperature?: number
  /** Watts. */
  readonly gpu_power?: number
  readonly [extra: string]: number | string | undefined
}

export interface EvalRecord {
  readonly type: 'eval'
  readonly step: number
  readonly epoch: number
  readonly eval_loss: number
  readonly eval_perplexity: number
  readonly time: number
  /** Seconds that the evaluation took. */
  readonly eval_runtime?: number
  readonly [extra: string]: number | string | undefined
}

export const metricEventKinds = [
  'start',
  'resume',
  'checkpoint',
  'pause',
  'stop',
  'non_finite',
  'warning',
  'sample',
  'output',
  'finish',
  'fail',
] as const
export type MetricEventKind = (typeof metricEventKinds)[number]

/** Something to mark in the chart. */
export interface EventRecord {
  readonly type: 'event'
  readonly event: MetricEventKind
  readonly step: number
  readonly time: number
  readonly message?: string
  /** Relative to the run directory. */
  readonly path?: string
}

export type MetricRecord = StepRecord | EvalRecord | EventRecord

/** Parallel columns of equal length; NaN where a record has no such key or the value was not a number. */
export interface MetricColumns {
  readonly length: number
  /** `step` is always there. */
  readonly columns: Readonly<Record<string, Float64Array>> & { readonly step: Float64Array }
}

/** What was read of metrics.jsonl in one go. */
export interface MetricBatch {
  readonly steps: MetricColumns
  readonly evals: MetricColumns
  readonly events: readonly EventRecord[]
  /** Lines that could not be understood and were left out. */
  readonly invalid: number
}

const specialNumbers: Readonly<Record<string, number>> = { NaN: NaN, Infinity: Infinity, '-Infinity': -Infinity }

/** A value of a record as a number; undefined for anything else. */
export function metricNumber(value: unknown): number | undefined {
  if (typeof value === 'number') return value
  return typeof value === 'string' ? specialNumbers[value] : undefined
}

/**
 * The line of a record, without the line break. Fractions keep nine significant digits: every float32 survives, and the
 * file stays small and quick to read.
 */
export function encodeMetric(record: MetricRecord): string {
  return JSON.stringify(record, (_key, value: unknown) => {
    if (typeof value !== 'number' || Number.isInteger(value)) return value
    return Number.isFinite(value) ? Number(value.toPrecision(9)) : String(value)
  })
}

/** A record from its line; undefined when the line is not one. */
export function decodeMetric(line: string): MetricRecord | undefined {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  const fields = value as Record<string, unknown>
  if (typeof fields.step !== 'number') return undefined
  if (fields.type === 'event') return typeof fields.event === 'string' ? (value as EventRecord) : undefined
  if (fields.type !== 'step' && fields.type !== 'eval') return undefined
  for (const key of Object.keys(fields)) if (key !== 'type') fields[key] = metricNumber(fields[key])
  return value as StepRecord | EvalRecord
}

/**
 * Exponential moving average with bias correction: m = w·m + (1 − w)·x, shown as m / (1 − wⁿ) (Kingma and Ba 2015,
 * section 3). `weight` is 0 (raw) to 0.999. Values that are not finite are passed through and leave the average alone.
 * It belongs on the full series, before any thinning out.
 */
export function smooth(values: Float64Array, weight: number): Float64Array {
  const average = createSmoother(weight)
  return Float64Array.from(values, average)
}

/** The same average for values that arrive one by one. */
export function createSmoother(weight: number): (value: number) => number {
  const keep = Math.min(Math.max(weight, 0), 0.999)
  let average = 0
  let power = 1
  return (value) => {
    if (!Number.isFinite(value)) return value
    average = keep * average + (1 - keep) * value
    power *= keep
    return average / (1 - power)
  }
}

/** e^loss, what people quote of an evaluation. */
export const perplexity = (loss: number): number => Math.exp(loss)

/** A loss or norm in four significant digits: 1.732, 0.04211, 12.35, 1.2e+9. */
export function formatLoss(value: number): string {
  if (!Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2)
  const digits = size === 0 ? 4 : Math.max(0, 3 - Math.floor(Math.log10(size)))
  return value.toFixed(Math.min(digits, 6))
}

/** A learning rate as recipes write it: 2e-4, 1.5e-5, 0. */
export function formatLearningRate(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value)
  return value
    .toExponential(2)
    .replace(/\.?0+e/, 'e')
    .replace('e+', 'e')
}
