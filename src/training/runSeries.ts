import { lowerBound } from '#shared/decimate.ts'
import type { EventRecord, MetricBatch, MetricColumns } from '#shared/metrics.ts'
import type { Range, XAxis } from '#shared/panelProtocol.ts'

/** Columns of numbers that grow at their end. A column's array is longer than the table: only `length` rows of it count. */
export class SeriesTable {
  #length = 0
  #capacity = 1_024
  readonly #columns = new Map<string, Float64Array>()

  get length(): number {
    return this.#length
  }

  /** Keys of the columns, in the order in which they first came. */
  get keys(): IterableIterator<string> {
    return this.#columns.keys()
  }

  /** The values of a metric, NaN where a record had none. The array is replaced when the table grows: do not keep it. */
  column(key: string): Float64Array | undefined {
    return this.#columns.get(key)
  }

  /** The value of the last row, NaN when there is none. */
  last(key: string): number {
    return this.#columns.get(key)?.[this.#length - 1] ?? NaN
  }

  append(rows: MetricColumns): void {
    const length = this.#length + rows.length
    if (length > this.#capacity) this.#grow(length)
    for (const [key, values] of Object.entries(rows.columns)) {
      let column = this.#columns.get(key)
      if (column === undefined) {
        column = new Float64Array(this.#capacity).fill(NaN)
        this.#columns.set(key, column)
      }
      column.set(values, this.#length)
    }
    this.#length = length
  }

  #grow(length: number): void {
    while (this.#capacity < length) this.#capacity *= 2
    for (const [key, values] of this.#columns) {
      const larger = new Float64Array(this.#capacity)
      larger.set(values.subarray(0, this.#length))
      larger.fill(NaN, this.#length)
      this.#columns.set(key, larger)
    }
  }
}

/** The metric behind each x axis but time, which is computed. */
const axisKeys: Readonly<Record<Exclude<XAxis, 'time'>, string>> = { step: 'step', epoch: 'epoch', tokens: 'num_tokens' }

/** Positions of the rows along one x axis, extended as the table grows. */
interface Positions {
  length: number
  values: Float64Array
}

/** All metrics of one run, complete and in memory. Rows are in the order of their steps. */
export class RunSeries {
  steps = new SeriesTable()
  evals = new SeriesTable()
  events: EventRecord[] = []
  /** Counts how often the series has begun anew, as after a resume from an earlier step. */
  generation = 0
  invalidLines = 0
  readonly #nonFinite = new Set<number>()
  readonly #positions = new Map<XAxis, Positions>()
  /** When work began, and began again: milliseconds, ascending. */
  #starts: number[] = []

  /** Steps whose loss was not a finite number, ascending. */
  get nonFiniteSteps(): readonly number[] {
    return [...this.#nonFinite].sort((a, b) => a - b)
  }

  get nonFiniteCount(): number {
    return this.#nonFinite.size
  }

  /** Forgets everything. */
  clear(): void {
    this.steps = new SeriesTable()
    this.evals = new SeriesTable()
    this.events = []
    this.invalidLines = 0
    this.#starts = []
    this.#nonFinite.clear()
    this.#positions.clear()
    this.generation++
  }

  append(batch: MetricBatch): void {
    this.steps.append(batch.steps)
    this.evals.append(batch.evals)
    for (const event of batch.events) {
      this.events.push(event)
      if (event.event === 'start' || event.event === 'resume') this.#starts.push(event.time)
      if (event.event === 'non_finite') this.#nonFinite.add(event.step)
    }
    const { step, loss } = batch.steps.columns
    if (loss !== undefined) for (let i = 0; i < loss.length; i++) if (!Number.isFinite(loss[i])) this.#nonFinite.add(step[i]!)
    this.invalidLines += batch.invalid
  }

  /**
   * Where the step rows stand on an x axis: never decreasing, and finite. `steps.length` values count. Time is in seconds
   * of work: from a resume on, the clock goes on where the rows before it ended.
   */
  positions(axis: XAxis): Float64Array {
    let known = this.#positions.get(axis)
    if (known === undefined) this.#positions.set(axis, (known = { length: 0, values: new Float64Array(1_024) }))
    const { length } = this.steps
    if (known.values.length < length) {
      const larger = new Float64Array(2 ** Math.ceil(Math.log2(length)))
      larger.set(known.values.subarray(0, known.length))
      known.values = larger
    }
    if (axis === 'time') this.#extendTime(known)
    else this.#extend(known, this.steps.column(axisKeys[axis]))
    known.length = length
    return known.values
  }

  #extend(known: Positions, source: Float64Array | undefined): void {
    let before = known.length === 0 ? -Infinity : known.values[known.length - 1]!
    for (let i = known.length; i < this.steps.length; i++) {
      const value = source?.[i] ?? NaN
      if (value > before && value < Infinity) before = value
      known.values[i] = before === -Infinity ? 0 : before
    }
  }

  #extendTime(known: Positions): void {
    const times = this.steps.column('time')
    let start = known.length === 0 ? 0 : upperBound(this.#starts, times?.[known.length - 1] ?? NaN)
    for (let i = known.length; i < this.steps.length; i++) {
      const now = times?.[i] ?? NaN
      // The first row counts from the start of the run, when that is known.
      let since = i === 0 ? now : times![i - 1]!
      for (; start < this.#starts.length && this.#starts[start]! <= now; start++) {
        since = i === 0 ? this.#starts[start]! : Math.max(this.#starts[start]!, since)
      }
      const passed = (now - since) / 1000
      known.values[i] = (i === 0 ? 0 : known.values[i - 1]!) + (passed > 0 ? passed : 0)
    }
  }

  /** Where a step stands on an x axis, between the rows before and after it. */
  positionOf(step: number, axis: XAxis): number {
    if (axis === 'step') return step
    const { length } = this.steps
    if (length === 0) return 0
    const steps = this.positions('step')
    const positions = this.positions(axis)
    const after = lowerBound(steps, length, step)
    if (after === length) return positions[length - 1]!
    if (after === 0 || steps[after] === step) return positions[after]!
    const share = (step - steps[after - 1]!) / (steps[after]! - steps[after - 1]!)
    return positions[after - 1]! + share * (positions[after]! - positions[after - 1]!)
  }

  /** Where the evaluations stand on an x axis. */
  evalPositions(axis: XAxis): Float64Array {
    const steps = this.evals.column('step')
    let before = -Infinity
    return Float64Array.from(
      { length: this.evals.length },
      (_, i) => (before = Math.max(before, this.positionOf(steps![i]!, axis))),
    )
  }

  /** From the first to the last position on an x axis; null while there is nothing. */
  extent(axis: XAxis): Range | null {
    const ends: number[] = []
    if (this.steps.length > 0) {
      const positions = this.positions(axis)
      ends.push(positions[0]!, positions[this.steps.length - 1]!)
    }
    if (this.evals.length > 0) {
      const steps = this.evals.column('step')!
      ends.push(this.positionOf(steps[0]!, axis), this.positionOf(steps[this.evals.length - 1]!, axis))
    }
    return ends.length === 0 ? null : { min: Math.min(...ends), max: Math.max(...ends) }
  }
}

/** The number of values of an ascending list that are not above `value`. */
function upperBound(sorted: readonly number[], value: number): number {
  let count = 0
  while (count < sorted.length && sorted[count]! <= value) count++
  return count
}
