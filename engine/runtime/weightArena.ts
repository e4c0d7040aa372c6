import { UnslothError } from '#shared/errors.ts'
import { bytesPerElement, dtypeCode, type DType } from '../graph/dtype.ts'
import { whole, type Arena } from '../graph/graph.ts'
import type { Weight } from '../graph/ops/linear.ts'
import { align } from '../graph/plan.ts'
import type { QuantisedTensor } from '../io/bitsandbytes.ts'
import type { ScaledTensor } from '../io/scaledTensors.ts'
import { readFloat32, readTensorBytes, requireTensor, type TensorLocation, type TensorSource } from '../io/tensorSource.ts'
import { toGraphForm, type StoredForm } from '../model/storedForm.ts'
import { pieceShape, type WeightEntry, type WeightPiece } from '../model/weightTable.ts'
import type { QuantisedPart } from '../native.ts'
import type { Parameter } from '../patch/parameters.ts'
import { packedEntry, storedEntry, type Quantisation, type SmallWrite } from './quantisedWeights.ts'
import type { Runtime } from './runtime.ts'

/** Checkpoint types that weights may have, and what they are kept as. */
const kept: Readonly<Record<string, { source: DType; target: DType }>> = {
  F32: { source: 'f32', target: 'f32' },
  BF16: { source: 'bf16', target: 'bf16' },
  F16: { source: 'f16', target: 'f16' },
  F64: { source: 'f64', target: 'f32' },
}

/** A checkpoint's weights, with those that are stored quantised. */
export interface WeightSource {
  readonly source: TensorSource
  readonly quantised: ReadonlyMap<string, QuantisedTensor>
  readonly scaled: ReadonlyMap<string, ScaledTensor>
}

/** One checkpoint tensor as a piece of a weight. */
export interface LocatedPiece {
  readonly piece: WeightPiece
  readonly tensor: TensorLocation
  readonly elements: number
  readonly quantised: QuantisedTensor | undefined
  readonly scaled: ScaledTensor | undefined
  /** Of its values. */
  readonly type: DType
}

function located({ source, quantised, scaled }: WeightSource, entry: WeightEntry, piece: WeightPiece): LocatedPiece {
  const tensor = requireTensor(source, piece.from ?? piece.name)
  const packed = quantised.get(tensor.name)
  const shape = packed?.shape ?? tensor.shape
  const expected = pieceShape(entry, piece)
  if (shape.join() !== expected.join())
    throw new UnslothError(
      'MODEL_INVALID',
      `${tensor.path}: ${piece.name} has shape [${shape.join(', ')}], but config.json asks for [${expected.join(', ')}].`,
      { hint: 'The weights and config.json are of different models.' },
    )
  const small = scaled.get(tensor.name)
  const type = packed?.dtype ?? (small === undefined ? typesOf(tensor).target : 'bf16')
  return {
    piece,
    tensor,
    elements: expected.reduce((product, size) => product * size, 1),
    quantised: packed,
    scaled: small,
    type,
  }
}

function typesOf(tensor: TensorLocation): { source: DType; target: DType } {
  const types = kept[tensor.dtype]
  if (types === undefined)
    throw new UnslothError(
      'MODEL_UNSUPPORTED',
      `${tensor.path}: ${tensor.name} has dtype ${tensor.dtype}, which cannot be trained on yet.`,
      {
        hint: `Supported: ${Object.keys(kept).join(', ')}, 4 bits of bitsandbytes, INT8 and FP8 (e4m3) with scales. Use the 16-bit version of the model.`,
      },
    )
  return types
}

export interface WeightArena {
  readonly weights: ReadonlyMap<string, Weight>
  readonly bytes: number
  readonly parts: readonly LoadItem[]
  /** The same of the arena in memory of the system. */
  readonly hostBytes: number
  readonly hostParts: readonly LoadItem[]
  /** Small tables that go with quantised weights. */
  readonly writes: readonly SmallWrite[]
  /** Whether any matrix stands in 4 or 8 bits. */
  readonly isQuantised: boolean
  /** What could not be kept in few bits, and why: one sentence each. */
  readonly notes: readonly string[]
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
  /** Present when it is quantised, in the file or on the way in; what has to be read for that is read when it is loaded. */
  readonly quantised?: () => Promise<QuantisedLoad>
}

/** What a quantised item needs besides its place. */
export type QuantisedLoad = QuantisedPart extends infer Part
  ? Part extends unknown
    ? Omit<Part, keyof LoadItem | 'buffer'>
    : never
  : never

const reorderOf = ({ elements }: LocatedPiece, { form, rows }: WeightPiece): LoadItem['reorder'] =>
  form === undefined ? undefined : { form, rows, cols: elements / rows }

/** A tensor that becomes plain numbers of a type. */
function plainItem(
  { piece, tensor, elements, quantised, scaled }: LocatedPiece,
  target: DType,
  offset: number,
  reorder: LoadItem['reorder'],
): LoadItem {
  const place = {
    name: piece.name,
    path: tensor.path,
    fileOffset: tensor.offset,
    elements,
    target: dtypeCode(target),
    offset,
    reorder,
  }
  if (quantised !== undefined) return { ...place, source: dtypeCode('u8'), quantised: () => unpacked(quantised) }
  if (scaled === undefined) return { ...place, source: dtypeCode(typesOf(tensor).source) }
  const { kind, scales, blockRows, blockCols, divisor } = scaled
  return {
    ...place,
    source: dtypeCode('u8'),
    quantised: () =>
      Promise.resolve({
        kind: 'scaled',
        fp8: kind === 'fp8',
        cols: tensor.shape.at(-1) ?? 1,
        blockRows,
        blockCols,
        divisor,
        scales,
      }),
  }
}

/** Maxima of all blocks in fp32: absmax = code[q]·absmax2 + offset, each operation rounded. */
async function unpacked({ absmax, code, nested, blockSize, dtype }: QuantisedTensor): Promise<QuantisedLoad> {
  const base = { kind: 'unpack', rounding: dtypeCode(dtype), blockSize, code } as const
  if (nested === undefined) return { ...base, absmax: await readFloat32(absmax) }
  const maxima = Float32Array.from(
    await readTensorBytes(absmax),
    (q, i) => Math.fround(nested.code[q]! * nested.absmax[Math.floor(i / nested.blockSize)]!) + nested.offset,
  )
  return { ...base, absmax: maxima }
}

/** Weights that may lie in memory of the system: what is read by the row, or once in a micro-step. */
export type HostWeight = 'embedding' | 'head'

/** Kinds of weights that bitsandbytes quantises: the linear layers of the decoder. */
const isQuantisable = ({ kind, rows }: WeightEntry): boolean => (kind === 'linear' && rows > 1) || kind === 'experts'

/** Whoever quantised a checkpoint chose what stays in 16 bits: nothing of it is quantised further. */
function chosenQuantisation(
  { quantised, scaled }: WeightSource,
  wanted: Quantisation,
): { quantisation: Quantisation; notes: string[] } {
  const [has, asked] = [
    quantised.size > 0 ? 4 : scaled.size > 0 ? 8 : 16,
    wanted.kind !== 'load' ? 16 : wanted.type === 'int8' ? 8 : 4,
  ]
  if (has === 16 || asked === 16) return { quantisation: wanted, notes: [] }
  return {
    quantisation: { kind: 'stored' },
    notes: has === asked ? [] : [`The checkpoint is stored in ${has} bits and stays so: load_in_${asked}bit has no effect.`],
  }
}

/**
 * Places frozen weights one after another in their stored type; nothing is read yet. `type` is what 16- and 32-bit numbers become.
 * Matrices in few bits stay so, or become so, as `quantisation` says. `host`: which lie in memory of the system.
 */
export function layoutWeights(
  entries: readonly WeightEntry[],
  source: WeightSource,
  type: DType | undefined,
  wanted: Quantisation,
  host: readonly HostWeight[] = [],
): WeightArena {
  const { quantisation, notes } = chosenQuantisation(source, wanted)
  const weights = new Map<string, Weight>()
  const parts = { weights: [] as LoadItem[], hostWeights: [] as LoadItem[] }
  const writes: SmallWrite[] = []
  const ends = { weights: 0, hostWeights: 0 }
  for (const entry of entries) {
    const arena = host.some((id) => id === entry.id) ? 'hostWeights' : 'weights'
    const at = ends[arena]
    const pieces = entry.pieces.map((piece) => located(source, entry, piece))
    const place = (dtype: DType) =>
      weights.set(entry.id, {
        value: whole({
          name: entry.id,
          arena,
          offset: at,
          dtype,
          rows: entry.rows,
          cols: entry.cols,
          rule: 'fixed',
          keep: 'residual',
          layer: entry.layer,
        }),
      })
    const inBlocks =
      !isQuantisable(entry) || quantisation.kind === 'none'
        ? undefined
        : (storedEntry(entry, pieces, at) ??
          (quantisation.kind === 'load' ? packedEntry(entry, pieces, at, quantisation) : undefined))
    if (inBlocks !== undefined && 'dtype' in inBlocks) {
      place(inBlocks.dtype)
      parts[arena].push(...inBlocks.parts)
      writes.push(...inBlocks.writes)
      ends[arena] = align(at + inBlocks.bytes)
      continue
    }
    if (inBlocks !== undefined) notes.push(`${entry.id} is kept in 16 bits: ${inBlocks.why}.`)
    const dtype = type ?? (pieces.every((piece) => piece.type === pieces[0]!.type) ? pieces[0]!.type : 'f32')
    let offset = at
    for (const located of pieces) {
      parts[arena].push(plainItem(located, dtype, offset, reorderOf(located, located.piece)))
      offset += located.elements * bytesPerElement(dtype)
    }
    place(dtype)
    ends[arena] = align(offset)
  }
  if (host.includes('head') && !host.includes('embedding') && !weights.has('head') && weights.has('embedding'))
    notes.push('training.offload_lm_head has no effect: this head is tied to the embedding, and offload_embedding moves both.')
  return {
    weights,
    bytes: ends.weights,
    parts: parts.weights,
    hostBytes: ends.hostWeights,
    hostParts: parts.hostWeights,
    writes,
    isQuantised: writes.length > 0,
    notes,
  }
}

/** Where checkpoint tensors go in the fp32 parameter arena. */
export function parameterParts(
  entries: readonly WeightEntry[],
  source: WeightSource,
  parameters: readonly Parameter[],
): LoadItem[] {
  const byName = new Map(parameters.map((parameter) => [parameter.name, parameter]))
  return entries.flatMap((entry) =>
    entry.pieces.map((piece) => {
      const found = located(source, entry, piece)
      return plainItem(found, 'f32', byName.get(piece.name)!.offset * 4, reorderOf(found, piece))
    }),
  )
}

/** Reads one 16- or 32-bit tensor as fp32. */
export async function loadPlain(
  runtime: Runtime,
  arena: Arena,
  { source }: WeightSource,
  name: string,
  offset: number,
): Promise<void> {
  const tensor = requireTensor(source, name)
  const elements = tensor.shape.reduce((product, size) => product * size, 1)
  await loadInto(runtime, arena, [
    {
      name,
      path: tensor.path,
      fileOffset: tensor.offset,
      elements,
      source: dtypeCode(typesOf(tensor).source),
      target: dtypeCode('f32'),
      offset,
    },
  ])
}

/** Reads tensors into an arena; a NaN or infinity in one of them is an error that names it. */
export async function loadInto(
  runtime: Runtime,
  arena: Arena,
  items: readonly LoadItem[],
  progress?: (done: number, total: number) => void,
): Promise<void> {
  const total = items.reduce((sum, item) => sum + item.elements, 0)
  let done = 0
  for (const together of batches(items)) {
    if (runtime.stopping) throw new UnslothError('STOPPED', 'Stopped while the weights were read.')
    const [first] = together
    const bad =
      first!.reorder !== undefined
        ? [await loadReordered(runtime, arena, first!, first!.reorder)]
        : first!.quantised !== undefined
          ? [await loadItem(runtime, arena, first!)]
          : await runtime.load(arena, together)
    for (const [index, item] of together.entries()) {
      if (bad[index]! > 0) throw notFinite(item, bad[index]!)
      done += item.elements
    }
    progress?.(done, total)
  }
}

/** Elements of plain tensors that are read by one call: a model of experts has tens of thousands of small ones. */
const batchElements = 2 ** 24

function batches(items: readonly LoadItem[]): LoadItem[][] {
  const result: LoadItem[][] = []
  let [elements, isOpen] = [0, false]
  for (const item of items) {
    const alone = item.reorder !== undefined || item.quantised !== undefined
    if (alone || !isOpen || elements + item.elements > batchElements) {
      result.push([])
      elements = 0
    }
    result.at(-1)!.push(item)
    elements += item.elements
    isOpen = !alone
  }
  return result
}

function notFinite({ path, name, source, target }: LoadItem, bad: number): UnslothError {
  const narrowed = target === dtypeCode('f16') && source !== target
  return new UnslothError(
    'MODEL_INVALID',
    `${path}: ${name} holds ${bad} values that are NaN${narrowed ? ', infinite, or beyond 65504, where float16 ends' : ' or infinite'}.`,
    {
      hint: narrowed
        ? 'Set training.compute to bfloat16 or float32 and model.dtype to auto; if that fails too, the checkpoint is damaged.'
        : 'The checkpoint is damaged: download it again.',
    },
  )
}

/** Returns the number of values that are not finite. */
async function loadItem(runtime: Runtime, arena: Arena, { quantised, ...item }: LoadItem): Promise<number> {
  if (quantised === undefined) return (await runtime.load(arena, [item]))[0]!
  return runtime.loadQuantised(arena, { ...item, ...(await quantised()) })
}

/** Loads a tensor as the file has it, turns it into the arena's order, and puts it back. */
async function loadReordered(
  runtime: Runtime,
  arena: Arena,
  item: LoadItem,
  { form, rows, cols }: NonNullable<LoadItem['reorder']>,
): Promise<number> {
  const bad = await loadItem(runtime, arena, item)
  const bytes = runtime.read(arena, item.offset, item.elements * (item.target === dtypeCode('f32') ? 4 : 2))
  const data = item.target === dtypeCode('f32') ? new Uint32Array(bytes) : new Uint16Array(bytes)
  runtime.write(arena, item.offset, toGraphForm(data, form, rows, cols))
  return bad
}
