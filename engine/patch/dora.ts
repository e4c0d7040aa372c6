import { bytesPerElement, isQuantised } from '../graph/dtype.ts'
import { rowRange, slice, whole, type Command, type Tensor } from '../graph/graph.ts'
import { weightRows } from '../graph/ops/dora.ts'
import { gemm, type Dora, type LoraPart, type Weight } from '../graph/ops/linear.ts'
import type { Target } from '../graph/target.ts'
import type { ParameterLayout } from './parameters.ts'

const scratch = (name: string, rows: number, cols: number): Tensor =>
  whole({ name, arena: 'activations', offset: -1, dtype: 'f32', rows, cols, rule: 'fixed', keep: 'residual', layer: -1 })

/** Bytes of a quantised matrix that are turned into numbers at a time where its rows are measured. */
const atOnce = 2 ** 24

type Frozen = ReadonlyMap<string, Weight>

/**
 * The commands that measure the rows of every weight with DoRA, once they have their first values; the cache arena gives so many bytes
 * for it.
 */
export function doraSquares({ lora }: ParameterLayout, frozen: Frozen): { commands: readonly Command[]; cacheBytes: number } {
  let cacheBytes = 0
  const commands = [...lora].flatMap(([id, { dora }]): Command[] => {
    if (dora === undefined) return []
    const { value } = frozen.get(id)!
    const { rows, cols, dtype } = value.storage
    if (!isQuantised(dtype)) return [{ name: 'rowSquares', tensors: [dora.squares, value], ints: [], floats: [] }]
    const each = Math.max(1, Math.floor(atOnce / (4 * cols)))
    return Array.from({ length: Math.ceil(rows / each) }, (_, block) => block * each).flatMap((row): Command[] => {
      const count = Math.min(each, rows - row)
      const plain = whole({ ...scratch(`${id} unpacked`, count, cols).storage, arena: 'cache', offset: 0 })
      cacheBytes = Math.max(cacheBytes, count * cols * 4)
      return [
        { name: 'dequantise', tensors: [plain, value], ints: [row], floats: [] },
        { name: 'rowSquares', tensors: [slice(dora.squares, row, count), plain], ints: [], floats: [] },
      ]
    })
  })
  return { commands, cacheBytes }
}

/**
 * The commands that make norm and gain of every weight with DoRA from its adapter as it is now: products of the weight with the rank
 * alone, W·Aᵀ and A·Aᵀ, so that no matrix of the weight's size is made (see doraNorm). A GPU turns a quantised weight into numbers first.
 */
export function doraNorms({ lora }: ParameterLayout, frozen: Frozen, { unpacked }: Pick<Target, 'unpacked'>): Command[] {
  return [...lora].flatMap(([id, { dora, parts }]) =>
    parts.flatMap((part): Command[] => {
      if (dora === undefined) return []
      const { column, width, rank, a, b, scale } = part
      const { value } = frozen.get(id)!
      const direct = unpacked === undefined && isQuantised(value.storage.dtype)
      const rows = direct ? { operand: value, commands: [] } : weightRows(value, column, width, unpacked ?? 'f32', -1)
      const product = scratch(`${id}.wa`, rank, rows.operand.storage.rows)
      const gram = scratch(`${id}.gram`, rank, rank)
      const of = (tensor: Tensor): Tensor => slice(tensor, column, width)
      return [
        ...rows.commands,
        gemm(0, product, a.value, rows.operand, { precision: 0 }),
        gemm(0, gram, a.value, a.value, { precision: 0 }),
        {
          name: 'doraNorm',
          ints: [],
          floats: [scale],
          tensors: [
            of(dora.gain),
            of(dora.norm),
            of(dora.squares),
            magnitudeOf(part, dora),
            b.value,
            direct ? of(product) : product,
            gram,
          ],
        },
      ]
    }),
  )
}

/** The fp32 magnitudes of one part's rows. */
export function magnitudeOf(
  { column, width }: Pick<LoraPart, 'column' | 'width'>,
  { magnitudes }: Pick<Dora, 'magnitudes'>,
): Tensor {
  const owner = magnitudes.find((each) => each.column <= column && column + width <= each.column + each.width)!
  return slice(owner.value.master ?? owner.value.value, column - owner.column, width)
}

/** Numbers [row, row + rows) of a list [1, n] as a column. */
export const asColumn = (tensor: Tensor, row: number, rows: number): Tensor =>
  rowRange(whole({ ...tensor.storage, rows: tensor.cols, cols: 1 }), row, rows, bytesPerElement(tensor.storage.dtype))
