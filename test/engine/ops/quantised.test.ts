import { strict as assert } from 'node:assert'
import { commandNames } from '../../../engine/graph/commands.ts'
import { dtypeCode } from '../../../engine/graph/dtype.ts'
import { quant8Header, quant8Layout, type Numbers8 } from '../../../engine/graph/quant8.ts'
import { dynamicMap, fp4Code, nf4Code, quant4Header, quant4Layout } from '../../../engine/graph/quant4.ts'
import { at, close, equal, matrix, random, roundTo, type Matrix } from '../../reference/matrix.ts'
import { deviceOf } from './command.ts'

interface Case {
  readonly rows: number
  readonly cols: number
  readonly nested: boolean
  readonly fp4?: boolean
  readonly rounding?: 'bf16' | 'f16' | 'f32'
}

/** A random quantised matrix: its bytes, and its values from the definition. */
function quantised(
  { rows, cols, nested, fp4 = false, rounding = 'bf16' }: Case,
  seed: number,
): { bytes: Uint8Array; values: Matrix } {
  const dtype = nested ? 'q4n' : 'q4'
  const shift = 2
  const elements = rows * cols
  const layout = quant4Layout(dtype, elements, shift)
  const bytes = new Uint8Array(layout.bytes)
  const map = dynamicMap(true)
  const code = fp4 ? fp4Code : nf4Code
  bytes.set(quant4Header(code, nested ? map : undefined, shift, dtypeCode(rounding)))
  const numbers = random(1, elements, seed)
  const blocks = Math.ceil(elements / 64)
  const picks = random(1, 2 * blocks, seed + 1)
  const maxima = Array.from({ length: blocks }, (_, block) => {
    const q = Math.floor((at(picks, 0, block) + 1) * 127.9)
    const group = block >> shift
    const scale = Math.fround(0.02 + 0.01 * group)
    const offset = Math.fround(0.05)
    if (nested) {
      bytes[layout.absmax + block] = q
      new Float32Array(bytes.buffer, layout.nested + group * 8, 2).set([scale, offset])
      return Math.fround(Math.fround(map[q]! * scale) + offset)
    }
    const value = Math.fround(0.5 + q / 100)
    new Float32Array(bytes.buffer, layout.absmax + block * 4, 1)[0] = value
    return value
  })
  const values = matrix(rows, cols, (row, col) => {
    const i = row * cols + col
    const q = Math.floor((at(numbers, 0, i) + 1) * 7.99)
    bytes[layout.codes + (i >> 1)]! |= i % 2 === 0 ? q << 4 : q
    return roundTo(rounding, Math.fround(code[q]! * maxima[i >> 6]!))
  })
  return { bytes, values }
}

interface Case8 {
  readonly rows: number
  readonly cols: number
  readonly numbers: Numbers8
  readonly block: readonly [number, number]
  readonly rounding: 'bf16' | 'f16' | 'f32'
}

/** All e4m3 numbers by their bits, from the format's definition; its two NaN are left out. */
const e4m3 = (bits: number): number => {
  const [exponent, fraction, sign] = [(bits >> 3) & 15, bits & 7, bits > 127 ? -1 : 1]
  return sign * (exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7))
}

/** A random matrix of 8 bits: its bytes, and its values from the definition. */
function eightBits(
  { rows, cols, numbers, block: [blockRows, blockCols], rounding }: Case8,
  seed: number,
): { bytes: Uint8Array; values: Matrix } {
  const divisor = numbers === 'int8' ? 127 : 1
  const layout = quant8Layout(rows, cols, { blockRows, blockCols })
  const bytes = new Uint8Array(layout.bytes)
  bytes.set(quant8Header({ numbers, rounding: dtypeCode(rounding), blockRows, blockCols, divisor }))
  const across = Math.ceil(cols / blockCols)
  const scales = new Float32Array(bytes.buffer, layout.scales, across * Math.ceil(rows / blockRows)).map(
    (_, i) => 0.01 + (i % 17) / 1000,
  )
  bytes.set(new Uint8Array(scales.buffer), layout.scales)
  const random8 = random(1, rows * cols, seed)
  const values = matrix(rows, cols, (row, col) => {
    const byte = Math.floor((at(random8, 0, row * cols + col) + 1) * 127.99)
    const kept = numbers === 'fp8' && (byte & 127) === 127 ? byte - 1 : byte
    bytes[layout.numbers + row * cols + col] = kept
    const scale = scales[Math.floor(row / blockRows) * across + Math.floor(col / blockCols)]!
    return roundTo(rounding, Math.fround(Math.fround((numbers === 'int8' ? (kept << 24) >> 24 : e4m3(kept)) * scale) / divisor))
  })
  return { bytes, values }
}

interface Part {
  readonly dtype: 'f32' | 'bf16' | 'f16' | 'q4' | 'q4n' | 'q8' | 'f64' | 'u8'
  readonly rows: number
  readonly cols: number
  readonly bytes: Uint8Array
}

const plain = (m: Matrix): Part => ({
  dtype: 'f32',
  rows: m.rows,
  cols: m.cols,
  bytes: new Uint8Array(Float32Array.from(m.data).buffer),
})
const wide = (values: readonly number[]): Part => ({
  dtype: 'f64',
  rows: 1,
  cols: values.length,
  bytes: new Uint8Array(Float64Array.from(values).buffer),
})
const codes = (count: number): Part => ({ dtype: 'u8', rows: 1, cols: count, bytes: new Uint8Array(count) })

/** Runs a command with 1 and with 2 threads, which must not differ, and returns its operands' bytes afterwards. */
async function compute(
  name: (typeof commandNames)[number],
  parts: readonly (Part | undefined)[],
  ints: readonly number[],
  floats: readonly number[],
): Promise<Uint8Array[]> {
  const results: Uint8Array[][] = []
  for (const threads of [1, 2]) {
    const device = deviceOf(threads)
    const tensors: number[] = []
    const offsets: number[] = []
    let size = 0
    for (const part of parts) {
      offsets.push(size)
      if (part === undefined) continue
      tensors.push(dtypeCode(part.dtype), 0, size, part.rows, part.cols, part.cols, 0, 0)
      size += Math.ceil(part.bytes.length / 256) * 256
    }
    const buffer = device.alloc(size)
    let next = 0
    const operands = parts.map((part) => (part === undefined ? -1 : next++))
    parts.forEach((part, i) => part !== undefined && device.write(buffer, offsets[i]!, part.bytes))
    const plan = device.createPlan(
      Float64Array.from(tensors),
      Int32Array.of(commandNames.indexOf(name), operands.length, ints.length, floats.length, ...operands, ...ints),
      Float64Array.from(floats),
      Int32Array.of(buffer),
    )
    await device.run(plan, new Int32Array(6), 0, 1, false)
    results.push(
      parts.map((part, i) =>
        part === undefined ? new Uint8Array() : new Uint8Array(device.read(buffer, offsets[i]!, part.bytes.length)),
      ),
    )
    device.freePlan(plan)
    device.free(buffer)
  }
  assert.deepEqual(results[0], results[1], `${name} depends on the number of threads`)
  return results[0]!
}

const numbersOf = (bytes: Uint8Array, rows: number, cols: number): Matrix => {
  const values = new Float32Array(bytes.slice().buffer)
  return matrix(rows, cols, (row, col) => values[row * cols + col]!)
}

const cases: readonly Case[] = [
  { rows: 5, cols: 64, nested: false },
  { rows: 7, cols: 96, nested: true },
  { rows: 9, cols: 37, nested: true, fp4: true },
  { rows: 40, cols: 130, nested: false, rounding: 'f16' },
  { rows: 3, cols: 1300, nested: true, rounding: 'f32' },
  { rows: 70, cols: 200, nested: true },
]
const title = ({ rows, cols, nested, fp4, rounding }: Case) =>
  `[${rows},${cols}]${nested ? ' nested' : ''}${fp4 === true ? ' FP4' : ''}${rounding === undefined ? '' : ` of ${rounding}`}`

const cases8: readonly Case8[] = [
  { rows: 7, cols: 96, numbers: 'int8', block: [1, 96], rounding: 'bf16' },
  { rows: 9, cols: 1337, numbers: 'int8', block: [1, 1337], rounding: 'f16' },
  { rows: 70, cols: 200, numbers: 'fp8', block: [70, 200], rounding: 'bf16' },
  { rows: 300, cols: 261, numbers: 'fp8', block: [128, 128], rounding: 'bf16' },
  { rows: 40, cols: 130, numbers: 'fp8', block: [1, 130], rounding: 'f32' },
]
const title8 = ({ rows, cols, numbers, block, rounding }: Case8) =>
  `[${rows},${cols}] ${numbers} of ${rounding}, scales for [${block.join()}]`

describe('dequantise', () => {
  for (const one of cases8)
    it(`${title8(one)} gives number·scale, rounded, of any rows`, async () => {
      const { bytes, values } = eightBits(one, 3)
      const [first, rows] = [1, one.rows - 2]
      const [y] = await compute(
        'dequantise',
        [plain(matrix(rows, one.cols, () => 77)), { dtype: 'q8', rows: one.rows, cols: one.cols, bytes }],
        [first],
        [],
      )
      equal(
        numbersOf(y!, rows, one.cols),
        matrix(rows, one.cols, (row, col) => at(values, row + first, col)),
        'y',
      )
    })

  for (const one of cases)
    it(`${title(one)} gives code·absmax, rounded, of any rows`, async () => {
      const { bytes, values } = quantised(one, 3)
      const [first, rows] = [1, one.rows - 2]
      const [y] = await compute(
        'dequantise',
        [plain(matrix(rows, one.cols, () => 77)), { dtype: one.nested ? 'q4n' : 'q4', rows: one.rows, cols: one.cols, bytes }],
        [first],
        [],
      )
      equal(
        numbersOf(y!, rows, one.cols),
        matrix(rows, one.cols, (row, col) => at(values, row + first, col)),
        'y',
      )
    })

  it('refuses rows that are not there', async () => {
    const { bytes } = quantised(cases[0]!, 3)
    await assert.rejects(
      compute('dequantise', [plain(matrix(5, 64)), { dtype: 'q4', rows: 5, cols: 64, bytes }], [1], []),
      /dequantise: the rows are not in x/,
    )
  })
})

describe('gemm with a matrix of 8 bits', () => {
  for (const one of cases8)
    for (const [mode, m] of [
      [0, 3],
      [0, 50],
      [1, 50],
    ] as const)
      it(`${title8(one)}, mode ${mode}, ${m} rows: the bits of the same product with its values`, async () => {
        const { bytes, values } = eightBits(one, 5)
        const [k, n] = mode === 0 ? [one.cols, one.rows] : [one.rows, one.cols]
        const run = async (b: Part) =>
          numbersOf(
            (
              await compute('gemm', [plain(matrix(m, n)), plain(random(m, k, 6)), b, undefined, undefined], [mode, 0, 0], [1])
            )[0]!,
            m,
            n,
          )
        equal(await run({ dtype: 'q8', rows: one.rows, cols: one.cols, bytes }), await run(plain(values)), 'c')
      })
})

describe('gemm with a quantised matrix', () => {
  for (const one of cases)
    for (const [mode, m] of [
      [0, 3],
      [0, 50],
      [1, 50],
      [1, 3],
    ] as const)
      it(`${title(one)}, mode ${mode}, ${m} rows: the bits of the same product with its values`, async () => {
        const { bytes, values } = quantised(one, 11)
        const [depth, width] = mode === 0 ? [one.cols, one.rows] : [one.rows, one.cols]
        const a = random(m, depth, 5)
        const run = async (b: Part) =>
          numbersOf(
            (await compute('gemm', [plain(matrix(m, width)), plain(a), b, undefined, undefined], [mode, 0, 0], [1]))[0]!,
            m,
            width,
          )
        const c = await run({ dtype: one.nested ? 'q4n' : 'q4', rows: one.rows, cols: one.cols, bytes })
        equal(c, await run(plain(values)), 'c')
      })
})

/** States of `n` parameters and the reference's, from the definition in bitsandbytes' kernel. */
function nearest(map: Float32Array, x: number): number {
  let best = 0
  map.forEach((entry, i) => {
    if (Math.abs(entry - x) < Math.abs(map[best]! - x)) best = i
  })
  return best
}

const n = 4096 + 300
const scalars = (t: number, beta1: number, beta2: number, rate: number) => wide([0.5, 1 - beta1 ** t, 1 - beta2 ** t, rate])
const maxima = Math.ceil(n / 256)

describe('adamw8', () => {
  it('keeps moments as codes of the dynamic map, block by block', async () => {
    const [beta1, beta2, eps, decay, rate] = [0.9, 0.99, 1e-8, 0.1, 0.01]
    const maps = [dynamicMap(true), dynamicMap(false)] as const
    let state: Part[] = [plain(random(1, n, 1)), codes(n), codes(n), plain(matrix(1, maxima)), plain(matrix(1, maxima))]
    const exact = { p: [...random(1, n, 1).data], m: new Float64Array(n), v: new Float64Array(n) }
    for (let t = 1; t <= 3; ++t) {
      const grad = random(1, n, 10 + t)
      const after = await compute(
        'adamw8',
        [...state, plain(grad), scalars(t, beta1, beta2, rate)],
        [0],
        [beta1, beta2, eps, decay],
      )
      state = state.map((part, i) => ({ ...part, bytes: after[i]! }))
      for (let i = 0; i < n; ++i) {
        const g = 0.5 * at(grad, 0, i)
        exact.m[i] = beta1 * exact.m[i]! + (1 - beta1) * g
        exact.v[i] = beta2 * exact.v[i]! + (1 - beta2) * g * g
        const root = Math.sqrt(1 - beta2 ** t)
        exact.p[i] =
          (exact.p[i]! - ((rate * root) / (1 - beta1 ** t)) * (exact.m[i]! / (Math.sqrt(exact.v[i]!) + root * eps))) *
          (1 - rate * decay)
      }
      for (let first = 0; first < n; first += 256) {
        const last = Math.min(n, first + 256)
        for (const [values, map] of [
          [exact.m, maps[0]],
          [exact.v, maps[1]],
        ] as const) {
          const largest = values.subarray(first, last).reduce((most, value) => Math.max(most, Math.abs(value)), 0)
          for (let i = first; i < last; ++i) {
            let q = nearest(map, values[i]! / largest)
            if (values[i]! < 0 && map[q] === 0) --q
            values[i] = map[q]! * largest
          }
        }
      }
    }
    close(
      numbersOf(state[0]!.bytes, 1, n),
      matrix(1, n, (_, i) => exact.p[i]!),
      1e-5,
      'p',
    )
  })

  it('leaves a parameter whose gradient is not finite, and everything when the step is spoilt', async () => {
    const grad = matrix(1, n, (_, i) => (i === 7 ? NaN : 1))
    const parts = [
      plain(matrix(1, n, () => 2)),
      codes(n),
      codes(n),
      plain(matrix(1, maxima)),
      plain(matrix(1, maxima)),
      plain(grad),
    ]
    const [p] = await compute('adamw8', [...parts, scalars(1, 0.9, 0.99, 0.1)], [0], [0.9, 0.99, 1e-8, 0])
    const after = numbersOf(p!, 1, n)
    assert.equal(at(after, 0, 7), 2)
    assert.ok(Math.abs(at(after, 0, 8) - 1.9) < 1e-5)
    const [same] = await compute('adamw8', [...parts, wide([NaN, 0.1, 0.1, 0.1])], [0], [0.9, 0.99, 1e-8, 0.1])
    equal(
      numbersOf(same!, 1, n),
      matrix(1, n, () => 2),
      'p',
    )
  })
})

describe('lion', () => {
  it('moves by the rate against the sign of the mixed gradient', async () => {
    const [p, m, grad] = [random(1, n, 1), random(1, n, 2), random(1, n, 3)]
    const after = await compute('lion', [plain(p), plain(m), plain(grad), scalars(1, 0.9, 0.99, 0.01)], [0], [0.9, 0.99, 0.1])
    const mixed = (i: number) => 0.9 * at(m, 0, i) + 0.1 * 0.5 * at(grad, 0, i)
    close(
      numbersOf(after[0]!, 1, n),
      matrix(1, n, (_, i) => at(p, 0, i) * (1 - 0.001) - 0.01 * Math.sign(mixed(i))),
      1e-6,
      'p',
    )
    close(
      numbersOf(after[1]!, 1, n),
      matrix(1, n, (_, i) => 0.99 * at(m, 0, i) + 0.01 * 0.5 * at(grad, 0, i)),
      1e-6,
      'm',
    )
  })
})

describe('lion8', () => {
  it('is lion with a moment of 8 bits', async () => {
    const [p, grad] = [random(1, n, 1), random(1, n, 3)]
    const after = await compute(
      'lion8',
      [plain(p), codes(n), plain(matrix(1, maxima)), plain(grad), scalars(1, 0.9, 0.99, 0.01)],
      [0],
      [0.9, 0.99, 0.1],
    )
    close(
      numbersOf(after[0]!, 1, n),
      matrix(1, n, (_, i) => at(p, 0, i) * (1 - 0.001) - 0.01 * Math.sign(at(grad, 0, i))),
      1e-6,
      'p',
    )
    const map = dynamicMap(true)
    const largest = new Float32Array(after[2]!.slice().buffer)
    const moment = matrix(1, n, (_, i) => map[after[1]![i]!]! * largest[i >> 8]!)
    close(
      moment,
      matrix(1, n, (_, i) => 0.005 * at(grad, 0, i)),
      2e-2,
      'm',
    )
  })
})

describe('sgd', () => {
  it('goes down the gradient, with and without momentum', async () => {
    const [p, m, grad] = [random(1, n, 1), random(1, n, 2), random(1, n, 3)]
    const [plainStep] = await compute('sgd', [plain(p), undefined, plain(grad), scalars(1, 0, 0, 0.1)], [0], [0, 0.01])
    close(
      numbersOf(plainStep!, 1, n),
      matrix(1, n, (_, i) => at(p, 0, i) - 0.1 * (0.5 * at(grad, 0, i) + 0.01 * at(p, 0, i))),
      1e-6,
      'p',
    )
    const [moved] = await compute('sgd', [plain(p), plain(m), plain(grad), scalars(1, 0, 0, 0.1)], [0], [0.9, 0])
    close(
      numbersOf(moved!, 1, n),
      matrix(1, n, (_, i) => at(p, 0, i) - 0.1 * (0.9 * at(m, 0, i) + 0.5 * at(grad, 0, i))),
      1e-6,
      'p with momentum',
    )
  })
})

describe('adafactor', () => {
  it('divides by what rows and columns have in common, and clips the update', async () => {
    const [rows, cols, rate, decay, beta] = [13, 70, 0.1, 0.01, 0.4]
    const [p, grad] = [random(rows, cols, 1), random(rows, cols, 2)]
    const [row, column] = [random(1, rows, 3).data.map(Math.abs), random(1, cols, 4).data.map(Math.abs)]
    const vector = (values: ArrayLike<number>) => plain(matrix(1, values.length, (_, i) => values[i]!))
    const after = await compute(
      'adafactor',
      [plain(p), vector(row), vector(column), plain(grad), wide([0.5, beta, 0, rate])],
      [0],
      [1e-30, 1, decay],
    )
    const g = (r: number, c: number) => 0.5 * at(grad, r, c)
    const [byRow, byColumn] = [
      [...row].map(
        (value, r) =>
          beta * value + ((1 - beta) * Array.from({ length: cols }, (_, c) => g(r, c) ** 2).reduce((a, b) => a + b)) / cols,
      ),
      [...column].map(
        (value, c) =>
          beta * value + ((1 - beta) * Array.from({ length: rows }, (_, r) => g(r, c) ** 2).reduce((a, b) => a + b)) / rows,
      ),
    ]
    const mean = byRow.reduce((a, b) => a + b) / rows
    const u = matrix(rows, cols, (r, c) => g(r, c) / Math.sqrt((byRow[r]! / mean) * byColumn[c]!))
    const rms = Math.sqrt(u.data.reduce((sum, value) => sum + value * value, 0) / (rows * cols))
    close(
      numbersOf(after[0]!, rows, cols),
      matrix(rows, cols, (r, c) => at(p, r, c) * (1 - rate * decay) - (rate * at(u, r, c)) / Math.max(1, rms)),
      1e-6,
      'p',
    )
    close(
      numbersOf(after[1]!, 1, rows),
      matrix(1, rows, (_, r) => byRow[r]!),
      1e-6,
      'row',
    )
    close(
      numbersOf(after[2]!, 1, cols),
      matrix(1, cols, (_, c) => byColumn[c]!),
      1e-6,
      'column',
    )
  })

  it('keeps all squares of a vector', async () => {
    const [p, grad] = [random(1, 50, 1), random(1, 50, 2)]
    const after = await compute(
      'adafactor',
      [plain(p), plain(matrix(1, 50)), undefined, plain(grad), wide([1, 0, 0, 0.1])],
      [0],
      [1e-30, 1, 0],
    )
    close(
      numbersOf(after[0]!, 1, 50),
      matrix(1, 50, (_, i) => at(p, 0, i) - 0.1 * Math.sign(at(grad, 0, i))),
      1e-6,
      'p',
    )
  })
})
