import { isQuantised } from '../dtype.ts'
import { whole, type Command, type Graph, type Tensor } from '../graph.ts'

/** A frozen matrix as a product takes it. */
export interface Unpacked {
  readonly operand: Tensor
  /** To run before the product. */
  readonly commands: readonly Command[]
  /** Memory that these write; it lives until the product is done. */
  readonly scratch: readonly Tensor[]
}

/**
 * Rows up to which a product reads a quantised matrix as it is on every device: there, the time is that of reading it. A processor
 * always does, block by block.
 */
const fewRows = 8

/** The matrix itself, or plain numbers made from a quantised one where the device's products want them. */
export function unpacked(graph: Graph, weight: Tensor): Unpacked {
  const { storage } = weight
  const type = graph.unpackedType
  if (type === undefined || !isQuantised(storage.dtype) || graph.capacity.tokens <= fewRows)
    return { operand: weight, commands: [], scratch: [] }
  const kept = graph.unpacked.get(storage)
  if (kept !== undefined) return { operand: kept, commands: [], scratch: [] }
  const operand = whole({
    ...storage,
    name: `${storage.name} unpacked`,
    arena: 'activations',
    offset: -1,
    dtype: type,
    keep: 'derived',
    layer: graph.layer,
  })
  return { operand, commands: [{ name: 'dequantise', tensors: [operand, weight], ints: [0], floats: [] }], scratch: [operand] }
}
