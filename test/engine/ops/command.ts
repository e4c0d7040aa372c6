import { strict as assert } from 'node:assert'
import { commandNames, type CommandName } from '../../../engine/graph/commands.ts'
import { bytesPerElement, dtypeCode, type DType } from '../../../engine/graph/dtype.ts'
import { native, type NativeDevice } from '../../../engine/native.ts'
import { matrix, type Matrix } from '../../reference/matrix.ts'

/** One operand of a command under test: its values before the run, and where it lies. */
export interface Operand {
  readonly matrix: Matrix
  readonly dtype: DType
  /** Number of another operand whose memory this one takes over (in-place use). */
  readonly sameAs?: number
}

export const f32 = (m: Matrix): Operand => ({ matrix: m, dtype: 'f32' })
export const i32 = (values: readonly number[]): Operand => ({
  matrix: matrix(values.length, 1, (row) => values[row]!),
  dtype: 'i32',
})
export const typed = (m: Matrix, dtype: DType): Operand => ({ matrix: m, dtype })
/** An output of that size, full of rubbish, so that an element left unwritten shows. */
export const blank = (rows: number, cols: number): Operand => f32(matrix(rows, cols, () => 77))
/** An output in another operand's memory. */
export const over = (operands: readonly (Operand | undefined)[], index: number): Operand => ({
  ...operands[index]!,
  sameAs: index,
})

export interface Numbers {
  readonly ints?: readonly number[]
  readonly floats?: readonly number[]
  /** Live tokens, labelled rows, sequences; only commands that ask for them need them. */
  readonly dims?: readonly [number, number, number]
}

const devices = new Map<number, NativeDevice>()

/** A device with so many threads, shared by all tests of this process. */
export function deviceOf(threads: number): NativeDevice {
  let device = devices.get(threads)
  if (device === undefined) devices.set(threads, (device = new (native().Device)('cpu', threads)))
  return device
}

/** Disposes of the devices; called once when a test file is done with them. */
export function disposeDevices(): void {
  for (const device of devices.values()) device.dispose()
  devices.clear()
}

interface Place {
  readonly offset: number
  readonly ld: number
}

const sentinel = -1234.5

function encode(dtype: DType, view: DataView, offset: number, value: number): void {
  switch (dtype) {
    case 'f32':
      return view.setFloat32(offset, value, true)
    case 'f64':
      return view.setFloat64(offset, value, true)
    case 'i32':
      return view.setInt32(offset, value, true)
    case 'u8':
      return view.setUint8(offset, value)
    case 'bf16':
      return view.setUint16(offset, bf16Bits(value), true)
    case 'f16':
      return view.setUint16(offset, f16Bits(value), true)
    default:
      throw new Error(`a matrix of ${dtype} has no elements of its own`)
  }
}

function decode(dtype: DType, view: DataView, offset: number): number {
  switch (dtype) {
    case 'f32':
      return view.getFloat32(offset, true)
    case 'f64':
      return view.getFloat64(offset, true)
    case 'i32':
      return view.getInt32(offset, true)
    case 'u8':
      return view.getUint8(offset)
    case 'bf16':
      return fromBf16(view.getUint16(offset, true))
    case 'f16':
      return fromF16(view.getUint16(offset, true))
    default:
      throw new Error(`a matrix of ${dtype} has no elements of its own`)
  }
}

const word = new DataView(new ArrayBuffer(4))

function bf16Bits(value: number): number {
  word.setFloat32(0, value)
  return word.getUint32(0) >>> 16
}

function fromBf16(half: number): number {
  word.setUint32(0, half << 16)
  return word.getFloat32(0)
}

/** For values that fp16 holds exactly. */
function f16Bits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const size = Math.abs(value)
  if (Number.isNaN(size)) return 0x7e00
  if (size === Infinity) return sign | 0x7c00
  if (size < 2 ** -14) return sign | (size * 2 ** 24)
  const exponent = Math.floor(Math.log2(size))
  return sign | ((exponent + 15) << 10) | ((size / 2 ** exponent - 1) * 1024)
}

function fromF16(half: number): number {
  const sign = half & 0x8000 ? -1 : 1
  const exponent = (half >> 10) & 31
  const mantissa = half & 1023
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
}

interface Layout {
  /** Elements before the first column, and behind the last one. */
  readonly before: number
  readonly behind: number
}
const dense: Layout = { before: 0, behind: 0 }
/** A slice of a wider buffer, at an odd place. */
const sliced: Layout = { before: 1, behind: 4 }

async function runOnce(
  threads: number,
  layout: Layout,
  name: CommandName,
  operands: readonly (Operand | undefined)[],
  numbers: Numbers,
): Promise<Matrix[]> {
  const device = deviceOf(threads)
  const places: (Place | undefined)[] = []
  let bytes = 0
  for (const operand of operands) {
    if (operand === undefined) places.push(undefined)
    else if (operand.sameAs !== undefined) places.push(places[operand.sameAs])
    else {
      const ld = operand.matrix.cols + layout.before + layout.behind
      places.push({ offset: bytes, ld })
      bytes += Math.ceil((operand.matrix.rows * ld * bytesPerElement(operand.dtype)) / 64) * 64
    }
  }
  const image = new DataView(new ArrayBuffer(Math.max(bytes, 64)))
  /** Calls back with (row, column, byte offset) for every element of an operand's storage; columns beside it are outside 0…cols−1. */
  const eachElement = (i: number, visit: (row: number, col: number, offset: number) => void): void => {
    const { offset, ld } = places[i]!
    const { matrix: m, dtype } = operands[i]!
    const width = bytesPerElement(dtype)
    for (let row = 0, at = offset; row < m.rows; row++)
      for (let col = -layout.before; col < ld - layout.before; col++, at += width) visit(row, col, at)
  }
  const tensors: number[] = []
  const indices = operands.map((operand, i) => {
    if (operand === undefined) return -1
    const { matrix: m, dtype } = operand
    const { offset, ld } = places[i]!
    if (operand.sameAs === undefined)
      eachElement(i, (row, col, at) =>
        encode(dtype, image, at, col >= 0 && col < m.cols ? m.data[row * m.cols + col]! : sentinel),
      )
    tensors.push(dtypeCode(dtype), 0, offset + layout.before * bytesPerElement(dtype), m.rows, m.cols, ld, 0, 0)
    return tensors.length / 8 - 1
  })
  const ints = numbers.ints ?? []
  const floats = numbers.floats ?? []
  const commands = Int32Array.of(commandNames.indexOf(name), indices.length, ints.length, floats.length, ...indices, ...ints)
  const before = image.buffer.slice(0)
  const buffer = device.alloc(image.byteLength)
  try {
    device.write(buffer, 0, new Uint8Array(image.buffer))
    const plan = device.createPlan(Float64Array.from(tensors), commands, Float64Array.from(floats), Int32Array.of(buffer))
    try {
      const dims = numbers.dims ?? [0, 0, 0]
      const result = await device.run(plan, Int32Array.of(...dims, ...dims), 0, 1, false)
      assert.equal(result.executed, 1)
    } finally {
      device.freePlan(plan)
    }
    const after = new DataView(device.read(buffer, 0, image.byteLength))
    const unchanged = new DataView(before)
    return operands.map((operand, i) => {
      if (operand === undefined) return matrix(0, 0)
      const { matrix: m, dtype } = operand
      const values = matrix(m.rows, m.cols)
      eachElement(i, (row, col, at) => {
        const value = decode(dtype, after, at)
        if (col >= 0 && col < m.cols) values.data[row * m.cols + col] = value
        else if (value !== decode(dtype, unchanged, at))
          assert.fail(`${name} wrote outside of operand ${i}, at row ${row}, column ${col}`)
      })
      return values
    })
  } finally {
    device.free(buffer)
  }
}

/**
 * Runs one command and returns all its operands as they stand afterwards. Runs with 1 and with 2 threads, and on slices of wider
 * buffers, and fails unless all results are equal bit for bit and nothing was written beside an operand.
 */
export async function compute(
  name: CommandName,
  operands: readonly (Operand | undefined)[],
  numbers: Numbers = {},
): Promise<Matrix[]> {
  const result = await runOnce(1, dense, name, operands, numbers)
  const variants: [string, number, Layout][] = [
    ['2 threads', 2, dense],
    ['slices of wider buffers', 2, sliced],
  ]
  for (const [what, threads, layout] of variants) {
    const other = await runOnce(threads, layout, name, operands, numbers)
    result.forEach((m, i) => {
      const differs = m.data.findIndex((value, k) => !Object.is(value, other[i]!.data[k]))
      assert.equal(
        differs,
        -1,
        `${name}: operand ${i}, element ${differs} differs with ${what}: ${m.data[differs]} and ${other[i]!.data[differs]}`,
      )
    })
  }
  return result
}

/** Fails unless the command is refused with a message that matches. */
export async function refuses(
  name: CommandName,
  operands: readonly (Operand | undefined)[],
  numbers: Numbers,
  message: RegExp,
): Promise<void> {
  await assert.rejects(runOnce(2, dense, name, operands, numbers), { message })
}
