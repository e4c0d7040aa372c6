import { align } from './plan.ts'

/** Elements that share a maximum. */
export const quantBlock = 64
/** Blocks that share a scale of their maxima, as a power of two, at most. */
export const nestedShift = 8
export const headerBytes = 1280

/** Where the parts of a quantised matrix stand in its memory, in bytes; mirrors kernels/core/quant4.h, which documents them. */
export interface Quant4Layout {
  readonly codes: number
  readonly absmax: number
  /** Equal to `bytes` when the maxima are in fp32. */
  readonly nested: number
  readonly bytes: number
}

export function quant4Layout(dtype: 'q4' | 'q4n', elements: number, groupShift = nestedShift): Quant4Layout {
  const blocks = Math.ceil(elements / quantBlock)
  const absmax = align(headerBytes + Math.ceil(elements / 2))
  const nested = align(absmax + blocks * (dtype === 'q4n' ? 1 : 4))
  return {
    codes: headerBytes,
    absmax,
    nested,
    bytes: dtype === 'q4n' ? align(nested + Math.ceil(blocks / 2 ** groupShift) * 8) : nested,
  }
}

/** The largest power of two, at most 256, that divides all of these block numbers: how many blocks may share a scale. */
export function groupShiftOf(firstBlocks: readonly number[]): number {
  let shift = nestedShift
  while (firstBlocks.some((block) => block % 2 ** shift !== 0)) --shift
  return shift
}

export const nf4Code = Float32Array.of(
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
)

const fp4Half = [0, 0.005208333333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25]
export const fp4Code = Float32Array.of(...fp4Half, ...fp4Half.map((value) => -value))

/** The dynamic map of 8 bits (arXiv 2110.02861), with torch.linspace's fused operations in fp32; see kernels/core/quant4.h. */
export function dynamicMap(signed: boolean): Float32Array<ArrayBuffer> {
  const { fround } = Math
  const low = fround(0.1)
  const values: number[] = [0, 1]
  for (let i = 0; i < 7; ++i) {
    const n = 2 ** (signed ? i : i + 1) + 1
    const step = fround(fround(1 - low) / (n - 1))
    // step·k is exact in fp64: rounding once to fp32 is what a fused operation does.
    const boundary = (k: number) => fround(k < Math.floor(n / 2) ? step * k + low : 1 - step * (n - 1 - k))
    for (let k = 0; k + 1 < n; ++k) {
      const value = fround(fround(fround(boundary(k) + boundary(k + 1)) / 2) * fround(10 ** (i - 6)))
      values.push(value, ...(signed ? [-value] : []))
    }
  }
  return Float32Array.from(values).sort()
}

/** The header of a quantised matrix. */
export function quant4Header(
  code: Float32Array,
  nestedCode: Float32Array | undefined,
  groupShift: number,
  rounding: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(headerBytes)
  new Float32Array(bytes.buffer, 0, 16).set(code)
  new Uint32Array(bytes.buffer, 64, 2).set([groupShift, rounding])
  if (nestedCode !== undefined) new Float32Array(bytes.buffer, 256, 256).set(nestedCode)
  return bytes
}
