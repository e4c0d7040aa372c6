import { align } from './plan.ts'

const headerBytes = 256

/** What the bytes of an 8-bit matrix are: whole numbers, or FP8 e4m3. */
export type Numbers8 = 'int8' | 'fp8'

/** How an 8-bit matrix is scaled: value = number·scale / divisor, a scale for each block. */
export interface Scaling8 {
  readonly numbers: Numbers8
  /** DType code of the type that values are rounded to. */
  readonly rounding: number
  readonly blockRows: number
  readonly blockCols: number
  readonly divisor: number
}

/** Where the parts of an 8-bit matrix stand in its memory, in bytes; mirrors kernels/core/quant8.h, which documents them. */
export interface Quant8Layout {
  readonly numbers: number
  readonly scales: number
  readonly bytes: number
}

/** Scales of one row of blocks. */
export const scalesAcross = (cols: number, { blockCols }: Pick<Scaling8, 'blockCols'>): number => Math.ceil(cols / blockCols)

export function quant8Layout(rows: number, cols: number, scaling: Pick<Scaling8, 'blockRows' | 'blockCols'>): Quant8Layout {
  const scales = align(headerBytes + rows * cols)
  return {
    numbers: headerBytes,
    scales,
    bytes: align(scales + 4 * Math.ceil(rows / scaling.blockRows) * scalesAcross(cols, scaling)),
  }
}

/** The header of an 8-bit matrix. */
export function quant8Header({ numbers, rounding, blockRows, blockCols, divisor }: Scaling8): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(headerBytes)
  new Uint32Array(bytes.buffer, 0, 4).set([numbers === 'fp8' ? 1 : 0, rounding, blockRows, blockCols])
  new Float32Array(bytes.buffer, 16, 1)[0] = divisor
  return bytes
}
