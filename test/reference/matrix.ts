import { strict as assert } from 'node:assert'
import type { DType } from '../../engine/graph/dtype.ts'

/** A dense row-major matrix in double precision. */
export interface Matrix {
  readonly rows: number
  readonly cols: number
  readonly data: Float64Array
}

export function matrix(rows: number, cols: number, value: (row: number, col: number) => number = () => 0): Matrix {
  const data = new Float64Array(rows * cols)
  for (let row = 0; row < rows; row++) for (let col = 0; col < cols; col++) data[row * cols + col] = value(row, col)
  return { rows, cols, data }
}

/** A matrix of one column. */
export const column = (values: readonly number[]): Matrix => matrix(values.length, 1, (row) => values[row]!)

export const at = (m: Matrix, row: number, col: number): number => m.data[row * m.cols + col]!

export const put = (m: Matrix, row: number, col: number, value: number): void => {
  m.data[row * m.cols + col] = value
}

export const addTo = (m: Matrix, row: number, col: number, value: number): void => put(m, row, col, at(m, row, col) + value)

export const copyOf = (m: Matrix): Matrix => ({ ...m, data: m.data.slice() })

export const sum = (m: Matrix): number => m.data.reduce((total, value) => total + value, 0)

/** Σ a⊙b: a scalar loss whose gradient with respect to a is b. */
export const inner = (a: Matrix, b: Matrix): number => a.data.reduce((total, value, i) => total + value * b.data[i]!, 0)

export const plus = (a: Matrix, b: Matrix): Matrix => matrix(a.rows, a.cols, (r, c) => at(a, r, c) + at(b, r, c))

/** A pseudo-random stream of its own (mulberry32), so that tests do not depend on what they test. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Uniform numbers in [−size, size) that are exact in `dtype`. */
export function random(rows: number, cols: number, seed: number, size = 1, dtype: DType = 'f32'): Matrix {
  const next = uniform(seed)
  return matrix(rows, cols, () => roundTo(dtype, (2 * next() - 1) * size))
}

const bits = new DataView(new ArrayBuffer(4))

/** Round to nearest even to `dtype`, written from the definition of the formats. */
export function roundTo(dtype: DType, value: number): number {
  switch (dtype) {
    case 'f32':
      return Math.fround(value)
    case 'bf16':
      return roundToBits(Math.fround(value), 8, -126, 127)
    case 'f16':
      return roundToBits(Math.fround(value), 11, -14, 15)
    case 'i32':
    case 'u8':
      return Math.trunc(value) + 0 // there is no negative zero
    case 'f64':
      return value
    default:
      throw new Error(`${dtype} is no format of single numbers`)
  }
}

/** To a binary format with so many significant bits, gradual underflow below 2^lowest and infinity above 2^highest. */
function roundToBits(value: number, significant: number, lowest: number, highest: number): number {
  if (!Number.isFinite(value) || value === 0) return value
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(value))), lowest)
  const unit = 2 ** (exponent - significant + 1)
  const scaled = value / unit
  const floor = Math.floor(scaled)
  const rest = scaled - floor
  const rounded = (rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor) * unit
  if (Math.abs(rounded) >= 2 ** (highest + 1)) return Math.sign(rounded) * Infinity
  return rounded === 0 && value < 0 ? -0 : rounded
}

/** The bit pattern of an fp32 number, to build NaN and infinities by hand. */
export function floatFromBits(pattern: number): number {
  bits.setUint32(0, pattern)
  return bits.getFloat32(0)
}

/** ‖a − b‖ / ‖b‖. */
export function relativeError(a: Matrix, b: Matrix): number {
  assert.deepEqual([a.rows, a.cols], [b.rows, b.cols])
  let difference = 0
  let size = 0
  a.data.forEach((value, i) => {
    difference += (value - b.data[i]!) ** 2
    size += b.data[i]! ** 2
  })
  return size === 0 ? Math.sqrt(difference) : Math.sqrt(difference / size)
}

/** Fails unless ‖actual − expected‖ ≤ tolerance·‖expected‖. */
export function close(actual: Matrix, expected: Matrix, tolerance: number, what: string): void {
  const error = relativeError(actual, expected)
  assert.ok(error <= tolerance, `${what}: relative error ${error} is above ${tolerance}`)
}

/** Fails unless the two are equal, element by element. */
export function equal(actual: Matrix, expected: Matrix, what: string): void {
  assert.deepEqual([actual.rows, actual.cols], [expected.rows, expected.cols], what)
  actual.data.forEach((value, i) => {
    assert.ok(Object.is(value, expected.data[i]), `${what}: element ${i} is ${value}, expected ${expected.data[i]}`)
  })
}
