/**
 * Element types of plan tensors; the index is the number that the addon uses (kernels/core/tensor.h). `q4` and `q4n` are whole
 * matrices in blocks of 4 bits, with maxima in fp32 or in 8 bits (kernels/core/quant4.h), `q8` whole matrices of 8 bits with scales
 * (kernels/core/quant8.h): frozen weights of linear layers. `f8`, FP8 e4m3, is a type of files only.
 */
export const dtypes = ['f32', 'bf16', 'f16', 'i32', 'f64', 'u8', 'q4', 'q4n', 'q8', 'f8'] as const
export type DType = (typeof dtypes)[number]

const widths: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, f64: 8, u8: 1, q4: 0, q4n: 0, q8: 0, f8: 1 }

export const dtypeCode = (dtype: DType): number => dtypes.indexOf(dtype)
/** 0 for a quantised type: its elements have no place of their own. */
export const bytesPerElement = (dtype: DType): number => widths[dtype]

export const isQuantised = (dtype: DType): boolean => dtype === 'q4' || dtype === 'q4n' || dtype === 'q8'

/** The nearest bf16 number, ties to even. */
export function roundToBf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)
  const [word] = bits
  bits[0] = (word! + 0x7fff + ((word! >>> 16) & 1)) & 0xffff0000
  return new Float32Array(bits.buffer)[0]!
}
