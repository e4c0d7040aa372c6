import { UnslothError } from '#shared/errors.ts'
import { bytesPerElement, dtypeCode, type DType } from '../graph/dtype.ts'
import { whole, type Arena } from '../graph/graph.ts'
import type { Weight } from '../graph/ops/linear.ts'
import { align } from '../graph/plan.ts'
import { toGraphForm, type StoredForm } from '../model/storedForm.ts'
import { requireTensor, type TensorLocation, type TensorSource } from '../io/tensorSource.ts'
import { pieceShape, type WeightEntry, type WeightPiece } from '../model/weightTable.ts'
import type { Parameter } from '../patch/parameters.ts'
import type { Runtime } from './runtime.ts'

/** Checkpoint types that weights may have, and what they are kept as. */
const kept: Readonly<Record<string, { source: DType; target: DType }>> = {
  F32: { source: 'f32', target: 'f32' },
  BF16: { source: 'bf16', target: 'bf16' },
  F16: { source: 'f16', target: 'f16' },
  F64: { source: 'f64', target: 'f32' },
}

function located(source: TensorSource, entry: WeightEntry, piece: WeightPiece): TensorLocation {
  const tensor = requireTensor(source, piece.from ?? piece.name)
  const expected = pieceShape(entry, piece)
  if (tensor.shape.join() !== expected.join())
    throw new UnslothError('MODEL_INVALID', `${tensor.path}: ${piece.name} has shape [${tensor.shape.join(', ')}], but config.json asks for [${expected.join(', ')}].`, {
      hint: 'The weights and config.json are of different models.',
    })
  return tensor
}

function typesOf(tensor: TensorLocation): { source: DType; target: DType } {
  const types = kept[tensor.dtype]
  if (types === undefined)
    throw new UnslothError('MODEL_UNSUPPORTED', `${tensor.path}: ${tensor.name} has dtype ${tensor.dtype}, which cannot be trained on yet.`, {
      hint: `Supported: ${Object.keys(kept).join(', ')}. Use the 16-bit version of the model.`,
    })
  return types
}

export interface WeightArena {
  readonly weights: ReadonlyMap<string, Weight>
  readonly bytes: number
  readonly parts: readonly LoadItem[]
}

/** One checkpoint tensor and its place in an arena. */
export interface LoadItem {
  readonly name: string
  readonly path: string
  readonly fileOffset: number
  readonly elements: number
  readonly source: number
  readonly target: number
  readonly offset: number
  /** Present when the file orders the elements otherwise than the arena. */
  readonly reorder?: { readonly form: StoredForm; readonly rows: number; readonly cols: number } | undefined
}

const reorderOf = (tensor: TensorLocation, { form, rows }: WeightPiece): LoadItem['reorder'] =>
  form === undefined ? undefined : { form, rows, cols: elements(tensor) / rows }

const elements = (tensor: TensorLocation): number => tensor.shape.reduce((product, size) => product * size, 1)

/** Places frozen weights one after another in their stored type (`forced`: in that type); nothing is read yet. */
export function layoutWeights(entries: readonly WeightEntry[], source: TensorSource, forced?: DType): WeightArena {
  const weights = new Map<string, Weight>()
  const parts: LoadItem[] = []
  let at = 0
  for (const entry of entries) {
    const tensors = entry.pieces.map((piece) => located(source, entry, piece))
    const types = tensors.map(typesOf)
    const dtype = forced ?? (types.every(({ target }) => target === types[0]!.target) ? types[0]!.target : 'f32')
    let offset = at
    tensors.forEach((tensor, index) => {
      parts.push({ name: tensor.name, path: tensor.path, fileOffset: tensor.offset, elements: elements(tensor), source: dtypeCode(types[index]!.source), target: dtypeCode(dtype), offset, reorder: reorderOf(tensor, entry.pieces[index]!) })
      offset += elements(tensor) * bytesPerElement(dtype)
    })
    weights.set(entry.id, { value: whole({ name: entry.id, arena: 'weights', offset: at, dtype, rows: entry.rows, cols: entry.cols, rule: 'fixed', keep: 'residual', layer: entry.layer }) })
    at = align(offset)
  }
  return { weights, bytes: at, parts }
}

/** Where checkpoint tensors go in the fp32 parameter arena. */
export function parameterParts(entries: readonly WeightEntry[], source: TensorSource, parameters: readonly Parameter[]): LoadItem[] {
  const byName = new Map(parameters.map((parameter) => [parameter.name, parameter]))
  return entries.flatMap((entry) =>
    entry.pieces.map((piece) => {
      const tensor = located(source, entry, piece)
      const parameter = byName.get(piece.name)!
      return { name: tensor.name, path: tensor.path, fileOffset: tensor.offset, elements: elements(tensor), source: dtypeCode(typesOf(tensor).source), target: dtypeCode('f32'), offset: parameter.offset * 4, reorder: reorderOf(tensor, piece) }
    }),
  )
}

/** Reads tensors into an arena; a NaN or infinity in one of them is an error that names it. */
export async function loadInto(runtime: Runtime, arena: Arena, items: readonly LoadItem[], progress?: (done: number, total: number) => void): Promise<void> {
  const total = items.reduce((sum, item) => sum + item.elements, 0)
  let done = 0
  for (const item of items) {
    if (runtime.stopping) throw new UnslothError('STOPPED', 'Stopped while the weights were read.')
    const [bad] = item.reorder === undefined ? await runtime.load(arena, [item]) : [await loadReordered(runtime, arena, item, item.reorder)]
    if (bad! > 0)
      throw new UnslothError('MODEL_INVALID', `${item.path}: ${item.name} holds ${bad} values that are NaN or infinite.`, { hint: 'The checkpoint is damaged: download it again.' })
    done += item.elements
    progress?.(done, total)
  }
}

/** Loads a tensor as the file has it, turns it into the arena's order, and puts it back; returns the number of values that are not finite. */
async function loadReordered(runtime: Runtime, arena: Arena, item: LoadItem, { form, rows, cols }: NonNullable<LoadItem['reorder']>): Promise<number> {
  const [bad] = await runtime.load(arena, [item])
  const bytes = runtime.read(arena, item.offset, item.elements * (item.target === dtypeCode('f32') ? 4 : 2))
  const data = item.target === dtypeCode('f32') ? new Uint32Array(bytes) : new Uint16Array(bytes)
  runtime.write(arena, item.offset, toGraphForm(data, form, rows, cols))
  return bad!
}
