import { dynamicMap, quant4Layout, quantBlock } from '../graph/quant4.ts'
import { isQuantised } from '../graph/dtype.ts'
import { dtypes } from '../graph/dtype.ts'
import { quantStateJson } from '../io/bitsandbytes.ts'
import type { SafetensorsDtype } from '../io/safetensors.ts'
import { pieceShape, type WeightEntry, type WeightPiece } from '../model/weightTable.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'

export interface StoredTensor {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  readonly bytes: Uint8Array
}

const asBytes = (values: Float32Array): Uint8Array => new Uint8Array(values.buffer, values.byteOffset, values.byteLength)

/**
 * The tensors that bitsandbytes stores for one quantised matrix of a model, as it stands in memory: codes, maxima, their maps, and
 * the state; nothing for a matrix that is not quantised.
 */
export function quantisedTensorBytes(model: LoadedModel, entry: WeightEntry, piece: WeightPiece): StoredTensor[] {
  const { storage } = model.patched.arena.weights.get(entry.id)!.value
  if (!isQuantised(storage.dtype)) return []
  const nested = storage.dtype === 'q4n'
  const layout = quant4Layout(storage.dtype as 'q4' | 'q4n', storage.rows * storage.cols)
  const read = (offset: number, bytes: number) => new Uint8Array(model.runtime.read('weights', storage.offset + offset, bytes))
  const code = new Float32Array(read(0, 64).buffer)
  const [groupShift, rounding] = new Uint32Array(read(64, 8).buffer)
  const elements = piece.rows * entry.cols
  const [block, blocks] = [(piece.row * entry.cols) / quantBlock, Math.ceil(elements / quantBlock)]
  const packed = Math.ceil(elements / 2)
  const { name } = piece
  const type = code[0] === -1 ? 'nf4' : 'fp4'
  const tensors: StoredTensor[] = [
    { name, dtype: 'U8', shape: [packed, 1], bytes: read(layout.codes + (block * quantBlock) / 2, packed) },
    {
      name: `${name}.absmax`,
      dtype: nested ? 'U8' : 'F32',
      shape: [blocks],
      bytes: read(layout.absmax + block * (nested ? 1 : 4), blocks * (nested ? 1 : 4)),
    },
    { name: `${name}.quant_map`, dtype: 'F32', shape: [16], bytes: asBytes(code) },
  ]
  const dtype = dtypes[rounding!] as 'bf16' | 'f16' | 'f32'
  const state = { type, dtype, shape: pieceShape(entry, piece) } as const
  const stateName = `${name}.quant_state.bitsandbytes__${type}`
  const withState = (bytes: Uint8Array): StoredTensor[] => [
    ...tensors,
    { name: stateName, dtype: 'U8', shape: [bytes.length], bytes },
  ]
  if (!nested) return withState(quantStateJson(state))
  const pairs = new Float32Array(
    read(layout.nested + (block / 2 ** groupShift!) * 8, Math.ceil(blocks / 2 ** groupShift!) * 8).buffer,
  )
  const nestedAbsmax = Float32Array.from({ length: Math.ceil(blocks / 256) }, (_, i) => pairs[2 * ((i * 256) >> groupShift!)]!)
  tensors.push(
    { name: `${name}.nested_absmax`, dtype: 'F32', shape: [nestedAbsmax.length], bytes: asBytes(nestedAbsmax) },
    { name: `${name}.nested_quant_map`, dtype: 'F32', shape: [256], bytes: asBytes(dynamicMap(true)) },
  )
  return withState(quantStateJson({ ...state, nestedOffset: pairs[1]! }))
}
