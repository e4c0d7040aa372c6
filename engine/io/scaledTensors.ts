import { UnslothError } from '#shared/errors.ts'
import { quote } from './printable.ts'
import { SmallTensors } from './smallTensors.ts'
import type { TensorLocation, TensorSource } from './tensorSource.ts'

/** An 8-bit matrix with a scale for each block of it: value = number · scale / divisor, as bf16. */
export interface ScaledTensor {
  readonly weight: TensorLocation
  readonly kind: 'int8' | 'fp8'
  readonly scales: Float32Array
  readonly blockRows: number
  readonly blockCols: number
  readonly divisor: number
}

/**
 * The 8-bit matrices of a checkpoint by name: LLM.int8 of bitsandbytes (`SCB`, the maximum of each row) and FP8 e4m3 with
 * `weight_scale` or `weight_scale_inv`: one for the tensor, one for each row, or one for each block of 128 × 128. Undefined scales
 * make the tensor an error.
 */
export function scaledTensors(source: TensorSource): ReadonlyMap<string, ScaledTensor> {
  const small = new SmallTensors()
  try {
    return readAll(source, small)
  } finally {
    small.close()
  }
}

function readAll(source: TensorSource, small: SmallTensors): Map<string, ScaledTensor> {
  const found = new Map<string, ScaledTensor>()
  for (const weight of source.tensors.values()) {
    if (weight.dtype !== 'I8' && weight.dtype !== 'F8_E4M3') continue
    const module = weight.name.replace(/\.weight$/, '')
    const kind = weight.dtype === 'I8' ? 'int8' : 'fp8'
    const names = kind === 'int8' ? [`${module}.SCB`] : [`${weight.name}_scale_inv`, `${weight.name}_scale`]
    const scale = names.map((name) => source.tensors.get(name)).find((tensor) => tensor !== undefined)
    if (scale === undefined)
      throw new UnslothError(
        'MODEL_INVALID',
        `${weight.path}: ${quote(weight.name)} is ${weight.dtype}, but ${names.join(' or ')} is missing.`,
        { hint: 'Download the model again, or use its 16-bit version.' },
      )
    if (kind === 'int8') requireRows(small, source.tensors.get(`${module}.weight_format`), weight)
    found.set(weight.name, {
      weight,
      kind,
      scales: readScales(small, scale),
      ...blocksOf(weight, scale, kind),
      divisor: kind === 'int8' ? 127 : 1,
    })
  }
  return found
}

/** Orders of elements that bitsandbytes has written, by their number; only the first is still in use. */
const weightFormats = ['row', 'col32', 'col_turing', 'col_ampere']

function requireRows(small: SmallTensors, format: TensorLocation | undefined, weight: TensorLocation): void {
  const [number = 0] = format === undefined ? [] : small.bytes(format)
  if (number === 0) return
  throw new UnslothError(
    'MODEL_UNSUPPORTED',
    `${weight.path}: ${quote(weight.name)} has weight_format ${number} (${weightFormats[number] ?? 'unknown'}), an order of elements for one kind of GPU.`,
    { hint: 'Save the model again with bitsandbytes 0.45 or later, or use its 16-bit version.' },
  )
}

function readScales(small: SmallTensors, tensor: TensorLocation): Float32Array {
  const values = small.floats(tensor)
  const wrong = values.findIndex((value) => !Number.isFinite(value))
  if (wrong >= 0)
    throw new UnslothError('MODEL_INVALID', `${tensor.path}: ${quote(tensor.name)} holds ${values[wrong]} at ${wrong}.`, {
      hint: 'The checkpoint is damaged: download it again.',
    })
  return values
}

const fp8Block = 128

const product = (sizes: readonly number[]): number => sizes.reduce((all, size) => all * size, 1)

/** Of a matrix, or of a stack of them [experts, rows, cols], which is one with all rows below each other. */
function blocksOf(weight: TensorLocation, scale: TensorLocation, kind: 'int8' | 'fp8'): { blockRows: number; blockCols: number } {
  const [rows = 1, cols = 1] = weight.shape.slice(-2)
  const outer = weight.shape.slice(0, -2)
  const [stack, count] = [product(outer), product(scale.shape)]
  const has = (...shapes: readonly (readonly number[])[]) => shapes.some((shape) => shape.join() === scale.shape.join())
  if (weight.shape.length === 2 || weight.shape.length === 3) {
    if (count === 1 && kind === 'fp8') return { blockRows: stack * rows, blockCols: cols }
    if (has([...outer, rows], [...outer, rows, 1], [stack * rows])) return { blockRows: 1, blockCols: cols }
    if (kind === 'fp8' && outer.length > 0 && has([...outer], [...outer, 1], [...outer, 1, 1]))
      return { blockRows: rows, blockCols: cols }
    const inBlocks = has([...outer, Math.ceil(rows / fp8Block), Math.ceil(cols / fp8Block)])
    if (kind === 'fp8' && inBlocks && (outer.length === 0 || rows % fp8Block === 0))
      return { blockRows: fp8Block, blockCols: fp8Block }
  }
  throw new UnslothError(
    'MODEL_UNSUPPORTED',
    `${scale.path}: ${quote(scale.name)} has shape [${scale.shape.join(', ')}], which does not fit [${weight.shape.join(', ')}].`,
    { hint: 'Scales for the tensor, for each row and for blocks of 128 × 128 are known. Use the 16-bit version of the model.' },
  )
}
