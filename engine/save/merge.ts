import { bytesPerElement, isQuantised, type DType } from '../graph/dtype.ts'
import { rowRange, whole, type Command, type Storage, type Tensor } from '../graph/graph.ts'
import { gemm } from '../graph/ops/linear.ts'
import { planMemory } from '../graph/plan.ts'
import { asColumn } from '../patch/dora.ts'
import { toFileForm } from '../model/storedForm.ts'
import { isVector, type WeightEntry, type WeightPiece } from '../model/weightTable.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'

const activation = (name: string, rows: number, cols: number, dtype: DType): Tensor => {
  const storage: Storage = {
    name,
    arena: 'activations',
    offset: -1,
    dtype,
    rows,
    cols,
    rule: 'fixed',
    keep: 'residual',
    layer: -1,
  }
  return whole(storage)
}

/** The rows of a weight that one checkpoint tensor stands for; a vector's piece is a range of columns. */
function pieceTensor(value: Tensor, entry: WeightEntry, piece: WeightPiece): Tensor {
  return isVector(entry)
    ? { ...value, column: piece.row, cols: piece.rows }
    : rowRange(value, piece.row, piece.rows, bytesPerElement(value.storage.dtype))
}

/**
 * One checkpoint tensor as it is after training, in the given type: W + Σ scale·B·A summed in fp32, rows
 * stretched to their lengths (DoRA), and rounded once; a tensor that
 * was trained whole is that; anything else is the base's. Little-endian bytes, rows in order.
 */
export async function mergedTensor(
  model: LoadedModel,
  entry: WeightEntry,
  piece: WeightPiece,
  dtype: DType,
): Promise<Uint8Array> {
  const { value } = model.trained.weight(entry.id)
  const [rows, cols] = isVector(entry) ? [1, piece.rows] : [piece.rows, entry.cols]
  const sum = activation('merged', rows, cols, 'f32')
  const out = activation('rounded', rows, cols, dtype)
  const commands: Command[] = [
    isQuantised(value.storage.dtype)
      ? { name: 'dequantise', tensors: [sum, value], ints: [piece.row], floats: [] }
      : { name: 'cast', tensors: [sum, pieceTensor(value, entry, piece)], ints: [], floats: [] },
  ]
  const lora = model.trained.lora(entry.id)
  for (const part of lora?.parts ?? [])
    if (entry.experts !== undefined)
      commands.push({
        name: 'expertDelta',
        tensors: [sum, part.a.value, part.b.value],
        ints: [piece.row, entry.experts],
        floats: [part.scale],
      })
    else if (part.column === piece.row)
      commands.push(gemm(1, sum, part.b.value, part.a.value, { alpha: part.scale, accumulate: true, precision: 0 }))
  if (lora?.dora !== undefined) {
    await model.refreshShadow()
    commands.push({ name: 'scaleRows', tensors: [sum, sum, asColumn(lora.dora.gain, piece.row, rows)], ints: [], floats: [] })
  }
  commands.push({ name: 'cast', tensors: [out, sum], ints: [], floats: [] })
  const plan = planMemory(commands)
  await model.runtime.compile(plan).run()
  const bytes = new Uint8Array(
    model.runtime.read('activations', plan.offsets.get(out.storage)!, rows * cols * bytesPerElement(dtype)),
  )
  const { form } = piece
  if (form === undefined) return bytes
  const elements = bytesPerElement(dtype) === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer)
  const [height, width] = isVector(entry) ? [cols, 1] : [rows, cols]
  return new Uint8Array(toFileForm(elements, form, height, width).buffer)
}
