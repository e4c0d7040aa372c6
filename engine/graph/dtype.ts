/** Element types of plan tensors; the index is the number that the addon uses (kernels/core/tensor.h). */
export const dtypes = ['f32', 'bf16', 'f16', 'i32', 'f64', 'u8'] as const
export type DType = (typeof dtypes)[number]

const widths: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, f64: 8, u8: 1 }

export const dtypeCode = (dtype: DType): number => dtypes.indexOf(dtype)
export const bytesPerElement = (dtype: DType): number => widths[dtype]

/** The nearest bf16 number, ties to even. */
export function roundToBf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)
  const [word] = bits
  bits[0] = (word! + 0x7fff + ((word! >>> 16) & 1)) & 0xffff0000
  return new Float32Array(bits.buffer)[0]!
}
