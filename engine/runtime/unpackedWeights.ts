import { bytesPerElement, isQuantised } from '../graph/dtype.ts'
import { whole, type Command, type Storage, type Tensor } from '../graph/graph.ts'
import { align } from '../graph/plan.ts'
import type { PatchedModel } from './patchedModel.ts'

/** Frozen quantised matrices that stand in memory as plain numbers, too, so that no micro-step has to unpack them. */
export interface UnpackedWeights {
  readonly tensors: ReadonlyMap<Storage, Tensor>
  /** Of their arena. */
  readonly bytes: number
  /** What fills it once the weights are loaded. */
  readonly commands: readonly Command[]
}

export const nothingUnpacked: UnpackedWeights = { tensors: new Map(), bytes: 0, commands: [] }

/**
 * As many matrices as fit into `room` bytes, in the order of the model; none where products take them as they are. A micro-step unpacks
 * each of the others two or three times, which counts where it has few rows.
 */
export function unpackWeights({ arena, target }: PatchedModel, room: number): UnpackedWeights {
  const tensors = new Map<Storage, Tensor>()
  const commands: Command[] = []
  let bytes = 0
  const dtype = target.unpacked
  for (const { value } of dtype === undefined ? [] : arena.weights.values()) {
    const { storage } = value
    if (!isQuantised(storage.dtype) || tensors.has(storage)) continue
    const next = align(bytes + storage.rows * storage.cols * bytesPerElement(dtype!))
    if (next > room) continue
    const operand = whole({ ...storage, name: `${storage.name} unpacked`, arena: 'unpacked', offset: bytes, dtype: dtype! })
    tensors.set(storage, operand)
    commands.push({ name: 'dequantise', tensors: [operand, value], ints: [0], floats: [] })
    bytes = next
  }
  return { tensors, bytes, commands }
}
