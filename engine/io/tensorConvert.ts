import { UnslothError } from '#shared/errors.ts'
import type { SafetensorsDtype } from './safetensors.ts'

/** Element types of files to and from numbers. File data is little-endian, as is every machine this runs on. */

const scratch = new DataView(new ArrayBuffer(8))

/** Elements as a typed array, copied only when the bytes are not aligned. */
function view<T>(bytes: Uint8Array, width: number, make: (buffer: ArrayBufferLike, offset: number, length: number) => T): T {
  const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice()
  return make(aligned.buffer, aligned.byteOffset, Math.floor(bytes.length / width))
}

const asUint16 = (bytes: Uint8Array): Uint16Array =>
  view(bytes, 2, (buffer, offset, length) => new Uint16Array(buffer, offset, length))

/** Value of a half-precision pattern. */
export function halfToNumber(bits: number): number {
  const sign = (bits & 0x8000) !== 0 ? -1 : 1
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  if (exponent === 0) return sign * fraction * 2 ** -24
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15)
}

/** Value of a bfloat16 pattern. */
export function bfloat16ToNumber(bits: number): number {
  scratch.setUint32(0, bits << 16)
  return scratch.getFloat32(0)
}

/** OCP 8-bit float E4M3 (no infinities, 0x7f and 0xff are NaN). */
function e4m3ToNumber(bits: number): number {
  const sign = (bits & 0x80) !== 0 ? -1 : 1
  const exponent = (bits >> 3) & 15
  const fraction = bits & 7
  if ((bits & 0x7f) === 0x7f) return NaN
  return exponent === 0 ? sign * fraction * 2 ** -9 : sign * (1 + fraction / 8) * 2 ** (exponent - 7)
}

/** The nearest bfloat16 pattern, ties to even. */
export function numberToBfloat16(value: number): number {
  scratch.setFloat32(0, value)
  const bits = scratch.getUint32(0)
  if (Number.isNaN(value)) return ((bits >>> 16) | 0x40) & 0xffff
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
}

/** The nearest half-precision pattern, ties to even. */
export function numberToHalf(value: number): number {
  if (Number.isNaN(value)) return 0x7e00
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const magnitude = Math.abs(value)
  if (magnitude >= 65520) return sign | 0x7c00
  // Below 2^-14 the spacing stays 2^-24; a carry out of the fraction moves into the exponent by itself.
  scratch.setFloat64(0, magnitude)
  const exponent = Math.max(-14, (scratch.getUint16(0) >> 4) - 1023)
  const scaled = magnitude / 2 ** (exponent - 10)
  const floor = Math.floor(scaled)
  const rest = scaled - floor
  const rounded = floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? 1 : 0)
  return sign | (((exponent + 14) << 10) + rounded)
}

/** Types that become plain numbers. The packed 4- and 6-bit types and complex numbers do not. */
const decoders: Partial<Record<SafetensorsDtype, (bytes: Uint8Array) => ArrayLike<number | bigint>>> = {
  F64: (bytes) => view(bytes, 8, (buffer, offset, length) => new Float64Array(buffer, offset, length)),
  F32: (bytes) => view(bytes, 4, (buffer, offset, length) => new Float32Array(buffer, offset, length)),
  F16: (bytes) => Float32Array.from(asUint16(bytes), halfToNumber),
  BF16: (bytes) => {
    const values = asUint16(bytes)
    const words = new Uint32Array(values.length)
    for (let i = 0; i < values.length; i++) words[i] = values[i]! << 16
    return new Float32Array(words.buffer)
  },
  F8_E4M3: (bytes) => Float32Array.from(bytes, e4m3ToNumber),
  F8_E5M2: (bytes) => Float32Array.from(bytes, (bits) => halfToNumber(bits << 8)),
  F8_E8M0: (bytes) => Float32Array.from(bytes, (bits) => (bits === 255 ? NaN : 2 ** (bits - 127))),
  I64: (bytes) => view(bytes, 8, (buffer, offset, length) => new BigInt64Array(buffer, offset, length)),
  U64: (bytes) => view(bytes, 8, (buffer, offset, length) => new BigUint64Array(buffer, offset, length)),
  I32: (bytes) => view(bytes, 4, (buffer, offset, length) => new Int32Array(buffer, offset, length)),
  U32: (bytes) => view(bytes, 4, (buffer, offset, length) => new Uint32Array(buffer, offset, length)),
  I16: (bytes) => view(bytes, 2, (buffer, offset, length) => new Int16Array(buffer, offset, length)),
  U16: asUint16,
  I8: (bytes) => new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length),
  U8: (bytes) => bytes,
  BOOL: (bytes) => bytes,
}

/** Elements of a tensor as they are (F16, BF16 and the 8-bit floats widened to float32); may share the bytes' memory. */
export function decodeElements(dtype: SafetensorsDtype, bytes: Uint8Array, where: string): ArrayLike<number | bigint> {
  const decode = decoders[dtype]
  if (decode === undefined)
    throw new UnslothError('MODEL_UNSUPPORTED', `${where}: elements of type ${dtype} cannot be read as numbers.`, {
      hint: 'Use a 16- or 32-bit version of the model.',
    })
  return decode(bytes)
}

/** Float types that can be written. */
export type FloatDtype = 'F64' | 'F32' | 'F16' | 'BF16'

/** Numbers as file bytes, each rounded to nearest even (BF16 from doubles: by way of float32). */
export function encodeFloats(dtype: FloatDtype, values: ArrayLike<number>): Uint8Array {
  switch (dtype) {
    case 'F64':
      return new Uint8Array(Float64Array.from(values).buffer)
    case 'F32':
      return new Uint8Array(Float32Array.from(values).buffer)
    case 'F16':
      return new Uint8Array(Uint16Array.from(values, numberToHalf).buffer)
    case 'BF16':
      return new Uint8Array(Uint16Array.from(values, numberToBfloat16).buffer)
  }
}
