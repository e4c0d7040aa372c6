import { bucketExtremes, bucketPositions, bucketSize, lowerBound, maxChartPoints, quantile } from '#shared/decimate.ts'
import { createSmoother } from '#shared/metrics.ts'
import type { ClipMode, Mark, PanelSettings, RunDelta, TableDelta, Viewport } from '#shared/panelProtocol.ts'
import type { RunSeries, SeriesTable } from './runSeries.ts'

/** Metrics that are positions or bookkeeping, and get no curve. */
const notDrawn = new Set(['step', 'epoch', 'num_tokens', 'time', 'eval_perplexity', 'eval_runtime'])
/** Curves that are not averaged: they are smooth, or their steps mean something. */
const notSmoothed = new Set(['learning_rate', 'memory_bytes'])
/** Percentiles are worth the time for these only; the others have no outliers to clip. */
const clipped = new Set(['loss', 'grad_norm', 'tokens_per_second', 'eval_loss'])
/** The most marks in view; beyond, evenly chosen ones stay. */
const maxMarks = 400
const marked = new Set(['checkpoint', 'non_finite', 'resume', 'pause', 'stop', 'fail'])

const clipShares = { none: 1, p99: 0.99, p95: 0.95 } as const

/** A moving average over a whole column, at full resolution, extended as the column grows. */
class SmoothedColumn {
  readonly #next: (value: number) => number
  #length = 0
  #values = new Float64Array(1_024)

  constructor(weight: number) {
    this.#next = createSmoother(weight)
  }

  extend(source: Float64Array, length: number): Float64Array {
    if (this.#values.length < length) {
      const larger = new Float64Array(source.length)
      larger.set(this.#values.subarray(0, this.#length))
      this.#values = larger
    }
    const next = this.#next
    for (let i = this.#length; i < length; i++) this.#values[i] = next(source[i]!)
    this.#length = length
    return this.#values
  }
}

/** What was sent of a table, so that the next message can be its continuation. */
interface Sent {
  readonly signature: string
  readonly first: number
  readonly end: number
  readonly bucket: number
}

/** The rows of a table that a viewport shows. */
interface Slice {
  readonly first: number
  readonly end: number
  readonly bucket: number
}

/**
 * One run as one panel looks at it: turns the complete series into the few points of its viewport, and remembers what the
 * panel has, so that a growing run costs only the new points.
 */
export class SeriesView {
  readonly #series: RunSeries
  #settings: PanelSettings
  #viewport: Viewport
  #maxPoints = maxChartPoints
  #sentSteps: Sent | undefined
  #sentEvals: Sent | undefined
  #sentMarks = ''
  #sentClip: ClipMode = 'none'
  readonly #smoothed = new Map<string, SmoothedColumn>()
  #smoothedOf = ''

  constructor(series: RunSeries, settings: PanelSettings, viewport: Viewport) {
    this.#series = series
    this.#settings = settings
    this.#viewport = viewport
  }

  /** Changes what is looked at. `runs`: how many runs share the chart and its budget of points. */
  look(settings: PanelSettings, viewport: Viewport, runs: number): void {
    this.#settings = settings
    this.#viewport = viewport
    this.#maxPoints = Math.max(64, Math.floor(Math.min(4 * viewport.width, maxChartPoints) / Math.max(1, runs)))
  }

  /** The panel has nothing any more: the next delta is complete. */
  forget(): void {
    this.#sentSteps = this.#sentEvals = undefined
    this.#sentMarks = ''
    this.#sentClip = 'none'
  }

  /** What the panel lacks; undefined when it has everything. */
  delta(id: string): RunDelta | undefined {
    const series = this.#series
    const { xAxis, clip } = this.#settings
    const stepX = series.positions(xAxis)
    const steps = this.#table(series.steps, stepX, this.#sentSteps, 0.75)
    const evalX = series.evalPositions(xAxis)
    const evals = this.#table(series.evals, evalX, this.#sentEvals, 0.25)
    const marks = this.#marks()
    if (steps.delta === undefined && evals.delta === undefined && marks === undefined && clip === this.#sentClip) return undefined
    this.#sentClip = clip
    this.#sentSteps = steps.sent
    this.#sentEvals = evals.sent
    return {
      id,
      extent: series.extent(xAxis),
      ceilings: { ...this.#ceilings(series.steps, steps.sent), ...this.#ceilings(series.evals, evals.sent) },
      ...(steps.delta === undefined ? {} : { steps: steps.delta }),
      ...(evals.delta === undefined ? {} : { evals: evals.delta }),
      ...(marks === undefined ? {} : { marks }),
    }
  }

  #table(
    table: SeriesTable,
    x: Float64Array,
    before: Sent | undefined,
    share: number,
  ): { delta: TableDelta | undefined; sent: Sent } {
    const { first, end, bucket } = this.#slice(table, x, Math.floor(this.#maxPoints * share))
    const keys = [...table.keys].filter((key) => !notDrawn.has(key))
    const { smoothing, xAxis } = this.#settings
    const signature = `${this.#series.generation}/${xAxis}/${smoothing}/${keys.join()}`
    const sent: Sent = { signature, first, end, bucket }
    const continues = before?.signature === signature && before.first === first && before.bucket === bucket && before.end <= end
    if (continues && before.end === end) return { delta: undefined, sent }
    const start = continues ? before.end - ((before.end - first) % bucket) : first
    const columns: Record<string, Float64Array> = {}
    const smoothed: Record<string, Float64Array> = {}
    for (const key of keys) {
      const values = table.column(key)!
      columns[key] = bucketExtremes(values, start, end, bucket)
      if (smoothing > 0 && table === this.#series.steps && !notSmoothed.has(key)) {
        smoothed[key] = bucketExtremes(this.#average(key, values, table.length), start, end, bucket)
      }
    }
    const keep = bucket === 1 ? start - first : (2 * (start - first)) / bucket
    return { delta: { keep, x: bucketPositions(x, start, end, bucket), columns, smoothed, bucket }, sent }
  }

  /** The rows in view and one bucket at either side, so that lines reach the edges. */
  #slice(table: SeriesTable, x: Float64Array, maxPoints: number): Slice {
    const { length } = table
    const { range } = this.#viewport
    if (range === null) return { first: 0, end: length, bucket: bucketSize(length, maxPoints) }
    const from = Math.max(0, lowerBound(x, length, range.min) - 1)
    const to = Math.min(length, lowerBound(x, length, range.max) + 2)
    const bucket = bucketSize(to - from, maxPoints)
    if (bucket === 1) return { first: from, end: to, bucket }
    const first = from - (from % bucket)
    return { first, end: Math.min(length, first + Math.ceil((to - first) / bucket) * bucket), bucket }
  }

  #average(key: string, values: Float64Array, length: number): Float64Array {
    const of = `${this.#series.generation}/${this.#settings.smoothing}`
    if (of !== this.#smoothedOf) this.#smoothed.clear()
    this.#smoothedOf = of
    let column = this.#smoothed.get(key)
    if (column === undefined) this.#smoothed.set(key, (column = new SmoothedColumn(this.#settings.smoothing)))
    return column.extend(values, length)
  }

  #ceilings(table: SeriesTable, { first, end }: Sent): Record<string, number> {
    const { clip } = this.#settings
    const ceilings: Record<string, number> = {}
    if (clip === 'none') return ceilings
    for (const key of table.keys) {
      if (!clipped.has(key)) continue
      const ceiling = quantile(table.column(key)!, first, end, clipShares[clip])
      if (Number.isFinite(ceiling)) ceilings[key] = ceiling
    }
    return ceilings
  }

  /** All marks in view when they differ from those that were sent. */
  #marks(): Mark[] | undefined {
    const { xAxis } = this.#settings
    const { range } = this.#viewport
    const series = this.#series
    const signature = JSON.stringify([series.generation, xAxis, range, series.events.length, series.nonFiniteCount])
    if (signature === this.#sentMarks) return undefined
    const first = this.#sentMarks === ''
    this.#sentMarks = signature
    const marks: Mark[] = []
    const add = (mark: Omit<Mark, 'x'>): void => {
      const x = series.positionOf(mark.step, xAxis)
      if (range === null || (x >= range.min && x <= range.max)) marks.push({ ...mark, x })
    }
    const told = new Set<number>()
    for (const { event, step, message } of series.events) {
      if (!marked.has(event)) continue
      if (event === 'non_finite') told.add(step)
      add({ kind: event, step, ...(message === undefined ? {} : { message }) })
    }
    for (const step of series.nonFiniteSteps) if (!told.has(step)) add({ kind: 'non_finite', step })
    if (marks.length === 0 && first) return undefined
    return thinned(marks)
  }
}

/** At most `maxMarks`, the same share of every kind, and at least the last of each. */
function thinned(marks: readonly Mark[]): Mark[] {
  if (marks.length <= maxMarks) return [...marks].sort((a, b) => a.x - b.x)
  const stride = Math.ceil(marks.length / maxMarks)
  return [...new Set(marks.map((mark) => mark.kind))]
    .map((kind) => marks.filter((mark) => mark.kind === kind))
    .flatMap((same) => same.filter((_, i) => (same.length - 1 - i) % stride === 0))
    .sort((a, b) => a.x - b.x)
}
