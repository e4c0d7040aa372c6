import { UnslothError } from '#shared/errors.ts'
import { isJsonObject, parseJson } from './jsonText.ts'
import { quote } from './printable.ts'
import { pythonFloat } from './pythonJson.ts'
import { SmallTensors } from './smallTensors.ts'
import { requireTensor, type TensorLocation, type TensorSource } from './tensorSource.ts'

/** One matrix that bitsandbytes has quantised to 4 bits: tensors `<name>`, `<name>.absmax`, … of a checkpoint. */
export interface QuantisedTensor {
  readonly name: string
  readonly type: 'nf4' | 'fp4'
  readonly blockSize: number
  /** Type that the matrix had, and that its values are rounded to. */
  readonly dtype: 'bf16' | 'f16' | 'f32'
  readonly shape: readonly number[]
  /** Two codes a byte. */
  readonly packed: TensorLocation
  /** fp32, or 8-bit codes when nested. */
  readonly absmax: TensorLocation
  /** What the 16 codes stand for. */
  readonly code: Float32Array
  readonly nested?: {
    readonly absmax: Float32Array
    readonly code: Float32Array
    readonly offset: number
    readonly blockSize: number
  }
}

const stateKey = /^(.*)\.quant_state\.bitsandbytes__(.*)$/
const dtypes = { bfloat16: 'bf16', float16: 'f16', float32: 'f32' } as const
const again = 'The checkpoint is damaged: download it again.'

const bad = (tensor: TensorLocation, problem: string, hint = again) =>
  new UnslothError('MODEL_INVALID', `${tensor.path}: ${quote(tensor.name)} ${problem}.`, { hint })

/** All quantised matrices of a checkpoint, by the name of their weight. Small tensors are read; codes and maxima are not. */
export function quantisedTensors(source: TensorSource): ReadonlyMap<string, QuantisedTensor> {
  const found = new Map<string, QuantisedTensor>()
  const small = new SmallTensors()
  try {
    readAll(source, small, found)
  } finally {
    small.close()
  }
  const lost = [...source.tensors.values()].find(
    ({ name, dtype }) => dtype === 'U8' && !found.has(name) && source.tensors.has(`${name}.absmax`),
  )
  if (lost !== undefined) throw bad(lost, 'is quantised, but its quant_state is missing')
  return found
}

function readAll(source: TensorSource, small: SmallTensors, found: Map<string, QuantisedTensor>): void {
  for (const key of source.tensors.keys()) {
    const [, name, type] = stateKey.exec(key) ?? []
    if (name === undefined) continue
    if (type !== 'nf4' && type !== 'fp4')
      throw bad(
        requireTensor(source, key),
        `is of the unknown type ${quote(type!)}`,
        'nf4 and fp4 are known. Use the 16-bit version of the model.',
      )
    found.set(name, readQuantised(source, small, name, type))
  }
}

function stateOf(tensor: TensorLocation, bytes: Uint8Array): Record<string, unknown> {
  try {
    const value = parseJson(new TextDecoder('utf-8', { fatal: true }).decode(bytes), { file: tensor.path, python: true })
    if (isJsonObject(value)) return value
  } catch {
    // Told below.
  }
  throw bad(tensor, `is not the JSON of a quantisation state (${bytes.length} bytes)`)
}

function readQuantised(source: TensorSource, small: SmallTensors, name: string, type: 'nf4' | 'fp4'): QuantisedTensor {
  const at = requireTensor(source, `${name}.quant_state.bitsandbytes__${type}`)
  const state = stateOf(at, small.bytes(at))
  const size = (key: string, value: unknown): number => {
    if (typeof value === 'number' && Number.isSafeInteger(value) && value > 0) return value
    throw bad(at, `has no valid ${key}`)
  }
  if (state.quant_type !== type)
    throw bad(
      at,
      `says quant_type ${quote(String(state.quant_type))}`,
      `It should be ${type}: ${again.charAt(0).toLowerCase()}${again.slice(1)}`,
    )
  const shape = Array.isArray(state.shape) ? state.shape.map((value) => size('shape', value)) : []
  if (shape.length === 0) throw bad(at, 'has no shape')
  const blockSize = size('blocksize', state.blocksize)
  if (blockSize < 32 || blockSize > 4096 || (blockSize & (blockSize - 1)) !== 0)
    throw bad(at, `has blocksize ${blockSize}`, 'bitsandbytes writes powers of two from 32 to 4096: convert the model again.')
  const dtype = dtypes[state.dtype as keyof typeof dtypes]
  if (dtype === undefined) throw bad(at, `has dtype ${quote(String(state.dtype))}`, 'bfloat16, float16 and float32 are known.')
  const elements = shape.reduce((product, value) => product * value, 1)
  const blocks = Math.ceil(elements / blockSize)
  const packed = requireTensor(source, name)
  if (packed.dtype !== 'U8')
    throw bad(
      packed,
      `has dtype ${packed.dtype}`,
      'Codes that are stored as another type than uint8 (bnb_4bit_quant_storage) cannot be read.',
    )
  if (packed.bytes !== Math.ceil(elements / 2))
    throw bad(packed, `has ${packed.bytes} bytes, but its quant_state asks for ${Math.ceil(elements / 2)}`)
  const absmax = requireTensor(source, `${name}.absmax`)
  const isNested = state.nested_offset !== undefined
  const [wanted, width] = isNested ? (['U8', 1] as const) : (['F32', 4] as const)
  if (absmax.dtype !== wanted || absmax.bytes !== blocks * width)
    throw bad(
      absmax,
      `is ${absmax.dtype} of ${absmax.bytes} bytes, but blocks of ${blockSize} need ${wanted} of ${blocks * width}`,
    )
  const code = numbers(source, small, `${name}.quant_map`, 16)
  const base = { name, type, blockSize, dtype, shape, packed, absmax, code }
  if (!isNested) return base
  const { nested_offset: offset } = state
  if (typeof offset !== 'number' || !Number.isFinite(offset)) throw bad(at, 'has no valid nested_offset')
  const nestedBlock = size('nested_blocksize', state.nested_blocksize)
  return {
    ...base,
    nested: {
      absmax: numbers(source, small, `${name}.nested_absmax`, Math.ceil(blocks / nestedBlock)),
      code: numbers(source, small, `${name}.nested_quant_map`, 256),
      offset,
      blockSize: nestedBlock,
    },
  }
}

function numbers(source: TensorSource, small: SmallTensors, name: string, count: number): Float32Array {
  const tensor = requireTensor(source, name)
  if (tensor.dtype !== 'F32' || tensor.bytes !== count * 4)
    throw bad(tensor, `is ${tensor.dtype} of ${tensor.bytes} bytes, but F32 of ${count * 4} are needed`)
  const values = small.floats(tensor)
  const wrong = values.findIndex((value) => !Number.isFinite(value))
  if (wrong >= 0) throw bad(tensor, `holds ${values[wrong]} at ${wrong}`)
  return values
}

/** The bytes of `quant_state`, as Python's json.dumps writes them. */
export function quantStateJson(
  tensor: Pick<QuantisedTensor, 'type' | 'dtype' | 'shape'> & { readonly nestedOffset?: number },
): Uint8Array {
  const name = { bf16: 'bfloat16', f16: 'float16', f32: 'float32' }[tensor.dtype]
  const head = `{"quant_type": "${tensor.type}", "blocksize": 64, "dtype": "${name}", "shape": [${tensor.shape.join(', ')}]`
  const nested =
    tensor.nestedOffset === undefined
      ? ''
      : `, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": ${pythonFloat(tensor.nestedOffset)}`
  return new TextEncoder().encode(`${head}${nested}}`)
}
