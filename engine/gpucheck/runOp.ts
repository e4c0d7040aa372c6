import { normals } from '../bench/madeUpNumbers.ts'
import { bytesPerElement, roundToBf16, type DType } from '../graph/dtype.ts'
import { whole, type Arena, type Command, type Storage, type Tensor } from '../graph/graph.ts'
import { commandSignatures, type CommandName } from '../graph/commands.ts'
import { align, planMemory } from '../graph/plan.ts'
import { bfloat16ToNumber, halfToNumber, numberToBfloat16, numberToHalf } from '../io/tensorConvert.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { OpCase, OpOperand } from './opCase.ts'

/** Everything lies one after another in one arena. */
const arena: Arena = 'weights'

/** Enough numbers to fill operands from, at steps that share no factor with their prime count. */
const pool = (() => {
  const random = normals(12_345)
  return Float64Array.from({ length: 65_537 }, () => random.next().value)
})()

const roundTo = (type: 'f32' | 'bf16' | 'f16', value: number): number =>
  type === 'bf16' ? roundToBf16(value) : type === 'f16' ? halfToNumber(numberToHalf(value)) : Math.fround(value)

function values({ rows, cols, fill, type }: OpOperand, index: number, numbers: 'f32' | 'bf16' | 'f16'): Float64Array {
  const round = (value: number) => (type === 'activation' ? roundTo(numbers, value) : type === 'f32' ? Math.fround(value) : value)
  const normal = (i: number) => pool[(i * 7919 + index * 104_729) % pool.length]!
  const result = new Float64Array(rows * cols)
  for (let i = 0; i < result.length; ++i) {
    switch (fill.kind) {
      case 'normal':
        result[i] = round(normal(i) * fill.scale)
        break
      case 'positive':
        result[i] = round(0.5 + 0.1 * Math.abs(normal(i)))
        break
      case 'value':
        result[i] = round(fill.value)
        break
      case 'numbers':
        result[i] = fill.numbers[i]!
        break
      case 'bytes':
        throw new Error('a quantised matrix is no output')
    }
  }
  return result
}

function encode(data: Float64Array, type: DType): NodeJS.TypedArray {
  switch (type) {
    case 'f32':
      return Float32Array.from(data)
    case 'f64':
      return data
    case 'i32':
      return Int32Array.from(data)
    case 'bf16':
      return Uint16Array.from(data, numberToBfloat16)
    case 'f16':
      return Uint16Array.from(data, numberToHalf)
    default:
      throw new Error(`no operand is of type ${type}`)
  }
}

function decode(bytes: ArrayBuffer, type: DType): Float64Array {
  switch (type) {
    case 'f32':
      return Float64Array.from(new Float32Array(bytes))
    case 'f64':
      return new Float64Array(bytes)
    case 'i32':
      return Float64Array.from(new Int32Array(bytes))
    case 'bf16':
      return Float64Array.from(new Uint16Array(bytes), bfloat16ToNumber)
    case 'f16':
      return Float64Array.from(new Uint16Array(bytes), halfToNumber)
    default:
      throw new Error(`no operand is of type ${type}`)
  }
}

/** A device to run cases on, and the type its activations have; operands hold numbers that `values` can represent. */
export interface OpDevice {
  readonly runtime: Runtime
  readonly activation: 'f32' | 'bf16' | 'f16'
  /** Products of fp32 round to TF32. */
  readonly tf32?: boolean
}

/** Where the commands that can round to TF32 are told so, among their ints. */
export const precisionPlace: Partial<Readonly<Record<CommandName, number>>> = { gemm: 2, loraGrad: 0, headLoss: 0 }

/** The outputs of a case, widened; `numbers` is the type whose numbers the operands hold. */
export async function runOp(
  { runtime, activation, tf32 = false }: OpDevice,
  op: OpCase,
  numbers: 'f32' | 'bf16' | 'f16',
): Promise<Float64Array[]> {
  let offset = 0
  const tensors: (Tensor | undefined)[] = op.operands.map((operand, index) => {
    if (operand === undefined) return undefined
    const dtype = operand.type === 'activation' ? activation : operand.type
    const { rows, cols } = operand
    const storage: Storage = { name: String(index), arena, offset, dtype, rows, cols, rule: 'fixed', keep: 'residual', layer: -1 }
    offset = align(offset + (operand.fill.kind === 'bytes' ? operand.fill.bytes.length : rows * cols * bytesPerElement(dtype)))
    return whole(storage)
  })
  runtime.reserve(arena, offset, op.place)
  tensors.forEach((tensor, index) => {
    if (tensor === undefined) return
    const { fill } = op.operands[index]!
    runtime.write(
      arena,
      tensor.storage.offset,
      fill.kind === 'bytes' ? fill.bytes : encode(values(op.operands[index]!, index, numbers), tensor.storage.dtype),
    )
  })
  const ints = tf32 ? op.ints.map((value, at) => (at === precisionPlace[op.command] ? 2 : value)) : op.ints
  const command: Command = { name: op.command, tensors, ints, floats: op.floats }
  const rows = { tokens: op.tokens ?? 0, labelled: 0, sequences: op.sequences ?? 0 }
  await runtime.compile(planMemory([command])).run({ padded: rows, live: rows })
  const { outputs } = commandSignatures[op.command]
  return tensors.slice(0, outputs).flatMap((tensor, index) => {
    if (tensor === undefined || op.ignore?.includes(index) === true) return []
    const { storage } = tensor
    return [
      decode(runtime.read(arena, storage.offset, storage.rows * storage.cols * bytesPerElement(storage.dtype)), storage.dtype),
    ]
  })
}
