import { dtypeCode } from '../graph/dtype.ts'
import { quant8Header, quant8Layout, type Scaling8 } from '../graph/quant8.ts'
import { dynamicMap, fp4Code, nestedShift, nf4Code, quant4Header, quant4Layout, quantBlock } from '../graph/quant4.ts'
import { column, x, y, type OpCase, type OpOperand } from './opCase.ts'

/** Bytes that look random: the high ones of multiples of an odd number. */
const bytesFrom = (seed: number, count: number): Uint8Array =>
  Uint8Array.from({ length: count }, (_, i) => Math.imul(i + 7919 * seed + 1, 0x9e3779b1) >>> 24)

type Rounding = 'f32' | 'bf16' | 'f16'

/** A matrix in blocks of 4 bits, its numbers around 1/8. */
function fourBits(rows: number, cols: number, nested: boolean, rounding: Rounding, fp4 = false): OpOperand {
  const type = nested ? 'q4n' : 'q4'
  const [elements, blocks] = [rows * cols, Math.ceil((rows * cols) / quantBlock)]
  const layout = quant4Layout(type, elements)
  const bytes = new Uint8Array(layout.bytes)
  bytes.set(quant4Header(fp4 ? fp4Code : nf4Code, nested ? dynamicMap(true) : undefined, nestedShift, dtypeCode(rounding)))
  bytes.set(bytesFrom(1, Math.ceil(elements / 2)), layout.codes)
  if (nested) {
    bytes.set(bytesFrom(2, blocks), layout.absmax)
    new Float32Array(bytes.buffer, layout.nested, 2 * Math.ceil(blocks / 2 ** nestedShift)).forEach(
      (_, i, pairs) => (pairs[i] = i % 2 === 0 ? 0.1 + i / 100 : 0.25),
    )
  } else new Float32Array(bytes.buffer, layout.absmax, blocks).forEach((_, i, maxima) => (maxima[i] = 0.25 + (i % 13) / 100))
  return { rows, cols, type, fill: { kind: 'bytes', bytes } }
}

/** A matrix of 8 bits; int8 with a scale for each row, FP8 with those of the blocks. */
function eightBits(rows: number, cols: number, rounding: Rounding, fp8?: readonly [number, number]): OpOperand {
  const [blockRows, blockCols] = fp8 ?? [1, cols]
  const scaling: Scaling8 = {
    numbers: fp8 === undefined ? 'int8' : 'fp8',
    rounding: dtypeCode(rounding),
    blockRows,
    blockCols,
    divisor: fp8 === undefined ? 127 : 1,
  }
  const layout = quant8Layout(rows, cols, scaling)
  const bytes = new Uint8Array(layout.bytes)
  bytes.set(quant8Header(scaling))
  // e4m3's two NaN become the numbers below.
  bytes.set(
    bytesFrom(3, rows * cols).map((byte) => (fp8 !== undefined && (byte & 127) === 127 ? byte - 1 : byte)),
    layout.numbers,
  )
  new Float32Array(bytes.buffer, layout.scales, (layout.bytes - layout.scales) / 4).forEach(
    (_, i, scales) => (scales[i] = (fp8 === undefined ? 0.3 : 0.001) * (1 + (i % 11) / 10)),
  )
  return { rows, cols, type: 'q8', fill: { kind: 'bytes', bytes } }
}

const matrices = (rows: number, cols: number, rounding: Rounding): readonly (readonly [string, OpOperand])[] => [
  ['NF4', fourBits(rows, cols, false, rounding)],
  ['NF4, nested', fourBits(rows, cols, true, rounding)],
  ['FP4, nested', fourBits(rows, cols, true, rounding, true)],
  ['int8', eightBits(rows, cols, rounding)],
  ['FP8', eightBits(rows, cols, rounding, [rows, cols])],
  ['FP8 in blocks', eightBits(rows, cols, rounding, [128, 128])],
]

/**
 * Commands that read quantised matrices. Those of products keep fp32: a GPU does not round each number of few rows to the type that
 * the matrix had, a processor does.
 */
export function quantisedCases(): OpCase[] {
  const [experts, out, k] = [4, 96, 256]
  const first = column([0, 5, 5, 9, 14])
  return [
    ...(
      [
        [300, 256],
        [70, 200],
        [33, 37],
      ] as const
    ).flatMap(([rows, cols]) =>
      (['bf16', 'f16'] as const).flatMap((rounding) =>
        matrices(rows, cols, rounding).map(([name, matrix]): OpCase => ({
          command: 'dequantise',
          label: `${name} of ${rounding}, ${rows}x${cols}`,
          operands: [y(rows - 2, cols), matrix],
          ints: [1],
          floats: [],
        })),
      ),
    ),
    ...(
      [
        [1, 300, 256],
        [3, 70, 4096],
        [8, 130, 192],
        [5, 33, 37],
        [20, 96, 128],
      ] as const
    ).flatMap(([m, n, cols]) =>
      matrices(n, cols, 'f32').map(([name, matrix]): OpCase => ({
        command: 'gemm',
        label: `${name}, XWᵀ ${m}x${n}x${cols}`,
        operands: [y(m, n), x(m, cols), matrix, undefined, x(m, n)],
        ints: [0, 0, 0],
        floats: [0.5],
      })),
    ),
    ...matrices(experts * out, k, 'f32').map(([name, matrix]): OpCase => ({
      command: 'expertGemm',
      label: `${name}, XWᵀ with pairs`,
      operands: [y(14, out), x(14, k), matrix, first, x(14, 4), x(out, 4 * experts)],
      ints: [0, 0, 2],
      floats: [1, 0.5],
      tokens: 14,
    })),
  ]
}
