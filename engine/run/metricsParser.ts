import type { EventRecord, MetricBatch, MetricColumns } from '#shared/metrics.ts'
import { decodeMetric } from '#shared/metrics.ts'

/** Columns that grow by rows; a value that a row does not set is NaN. */
export class GrowingColumns {
  #length = 0
  #capacity = 256
  readonly #names: string[] = []
  readonly #columns: Float64Array[] = []
  readonly #index = new Map<string, number>()

  constructor() {
    // Every record has a step: the column is there even when no row is.
    this.column('step')
  }

  get length(): number {
    return this.#length
  }

  /** The number of the column `name`, which is made when it is new. */
  column(name: string): number {
    const known = this.#index.get(name)
    if (known !== undefined) return known
    const index = this.#columns.length
    this.#names.push(name)
    this.#columns.push(new Float64Array(this.#capacity).fill(NaN))
    this.#index.set(name, index)
    return index
  }

  /** Adds an empty row. */
  addRow(): void {
    if (this.#length === this.#capacity) {
      this.#capacity *= 2
      for (let i = 0; i < this.#columns.length; i++) {
        const larger = new Float64Array(this.#capacity)
        larger.set(this.#columns[i]!)
        larger.fill(NaN, this.#length)
        this.#columns[i] = larger
      }
    }
    this.#length++
  }

  /** Sets a value of the last row. */
  set(column: number, value: number): void {
    this.#columns[column]![this.#length - 1] = value
  }

  /** A copy of what was collected, without spare room. */
  snapshot(): MetricColumns {
    const columns: Record<string, Float64Array> & { step: Float64Array } = { step: this.#columns[0]!.slice(0, this.#length) }
    this.#names.forEach((name, i) => (columns[name] = this.#columns[i]!.slice(0, this.#length)))
    return { length: this.#length, columns }
  }
}

/** How the numeric lines of one type were written last: after the prefix, `"key":` and the column of each value. */
interface Layout {
  readonly prefix: Uint8Array
  readonly rows: GrowingColumns
  keys: readonly { readonly bytes: Uint8Array; readonly column: number }[]
}

const encoder = new TextEncoder()
const powersOfTen = Float64Array.from({ length: 23 }, (_, i) => Number(`1e${i}`))
const [comma, minus, plus, dot, digit0, upperE, lowerE, closeBrace] = [0x2c, 0x2d, 0x2b, 0x2e, 0x30, 0x45, 0x65, 0x7d] as const
/** Integers below this are exact in a double, with a digit to spare for the loop that builds them. */
const exactLimit = 2 ** 53 / 10 - 1

/**
 * Reads whole lines of metrics.jsonl into columns. The writer puts the same keys in the same order on every line, so a
 * line is compared with the layout of the previous one and only its numbers are parsed; any other line takes the way
 * through JSON.parse, with the same result.
 */
export class MetricsParser {
  readonly #steps: Layout = { prefix: encoder.encode('{"type":"step",'), rows: new GrowingColumns(), keys: [] }
  readonly #evals: Layout = { prefix: encoder.encode('{"type":"eval",'), rows: new GrowingColumns(), keys: [] }
  readonly #events: EventRecord[] = []
  readonly #decoder = new TextDecoder()
  #values = new Float64Array(64)
  #invalid = 0
  #end = 0

  /** Reads the lines in bytes[0, end); the last one ends with a line break at end − 1. */
  push(bytes: Uint8Array, end = bytes.length): void {
    let start = 0
    while (start < end) {
      let lineEnd = bytes.indexOf(0x0a, start)
      if (lineEnd < 0 || lineEnd > end) lineEnd = end
      if (!this.#fast(this.#steps, bytes, start, lineEnd) && !this.#fast(this.#evals, bytes, start, lineEnd)) {
        this.#slow(bytes, start, lineEnd)
      }
      start = lineEnd + 1
    }
  }

  /** Everything pushed so far. */
  batch(): MetricBatch {
    return {
      steps: this.#steps.rows.snapshot(),
      evals: this.#evals.rows.snapshot(),
      events: this.#events,
      invalid: this.#invalid,
    }
  }

  #fast(layout: Layout, bytes: Uint8Array, start: number, end: number): boolean {
    const { prefix, keys } = layout
    if (keys.length === 0 || !startsWith(bytes, start, end, prefix)) return false
    let at = start + prefix.length
    const last = keys.length - 1
    for (let i = 0; i <= last; i++) {
      const key = keys[i]!.bytes
      if (!startsWith(bytes, at, end, key)) return false
      const value = this.#number(bytes, at + key.length, end)
      if (value !== value) return false
      this.#values[i] = value
      at = this.#end
      if (bytes[at] !== (i === last ? closeBrace : comma)) return false
      at++
    }
    if (at !== end) return false
    layout.rows.addRow()
    for (let i = 0; i <= last; i++) layout.rows.set(keys[i]!.column, this.#values[i]!)
    return true
  }

  /** The number at `at`, which ends at #end; NaN when it is not one that this finds exactly. */
  #number(bytes: Uint8Array, at: number, end: number): number {
    const negative = bytes[at] === minus
    let i = negative ? at + 1 : at
    const first = i
    let mantissa = 0
    let scale = 0
    let fraction = false
    for (; i < end; i++) {
      const byte = bytes[i]!
      const digit = byte - digit0
      if (digit >= 0 && digit <= 9) {
        if (mantissa > exactLimit) return NaN
        mantissa = mantissa * 10 + digit
        if (fraction) scale--
      } else if (byte === dot && !fraction && i > first) {
        fraction = true
      } else break
    }
    if (i === first || (fraction && bytes[i - 1] === dot)) return NaN
    if (i < end && (bytes[i] === lowerE || bytes[i] === upperE)) {
      i++
      const down = bytes[i] === minus
      if (down || bytes[i] === plus) i++
      const digits = i
      let exponent = 0
      for (; i < end && i < digits + 4; i++) {
        const digit = bytes[i]! - digit0
        if (digit < 0 || digit > 9) break
        exponent = exponent * 10 + digit
      }
      if (i === digits) return NaN
      scale += down ? -exponent : exponent
    }
    this.#end = i
    // An exact integer times or over an exact power of ten is rounded once, hence correctly (Clinger 1990).
    if (scale < -22 || scale > 22) return NaN
    const value = scale < 0 ? mantissa / powersOfTen[-scale]! : mantissa * powersOfTen[scale]!
    return negative ? -value : value
  }

  #slow(bytes: Uint8Array, start: number, end: number): void {
    if (start === end) return
    const record = decodeMetric(this.#decoder.decode(bytes.subarray(start, end)))
    if (record === undefined) {
      this.#invalid++
      return
    }
    if (record.type === 'event') {
      this.#events.push(record)
      return
    }
    const layout = record.type === 'step' ? this.#steps : this.#evals
    layout.rows.addRow()
    const keys: { bytes: Uint8Array; column: number }[] = []
    for (const [name, value] of Object.entries(record)) {
      if (typeof value !== 'number') continue
      const column = layout.rows.column(name)
      layout.rows.set(column, value)
      keys.push({ bytes: encoder.encode(`${JSON.stringify(name)}:`), column })
    }
    layout.keys = keys
    if (keys.length > this.#values.length) this.#values = new Float64Array(keys.length * 2)
  }
}

function startsWith(bytes: Uint8Array, at: number, end: number, prefix: Uint8Array): boolean {
  if (at + prefix.length > end) return false
  for (let i = 0; i < prefix.length; i++) if (bytes[at + i] !== prefix[i]) return false
  return true
}
