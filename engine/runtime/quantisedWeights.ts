import { dtypeCode, type DType } from '../graph/dtype.ts'
import { quant8Header, quant8Layout, scalesAcross, type Scaling8 } from '../graph/quant8.ts'
import {
  dynamicMap,
  fp4Code,
  groupShiftOf,
  nestedShift,
  nf4Code,
  quant4Header,
  quant4Layout,
  quantBlock,
} from '../graph/quant4.ts'
import type { ScaledTensor } from '../io/scaledTensors.ts'
import type { WeightEntry } from '../model/weightTable.ts'
import type { LoadItem, LocatedPiece } from './weightArena.ts'

/**
 * `stored`: matrices that the checkpoint has in 4 or 8 bits stay so. `load`: the others are quantised on the way in, too, to 4 bits or
 * to rows of int8. `none`: all become plain numbers.
 */
export type Quantisation =
  | { readonly kind: 'stored' | 'none' }
  | { readonly kind: 'load'; readonly type: 'nf4' | 'fp4'; readonly nested: boolean }
  | { readonly kind: 'load'; readonly type: 'int8' }

export const nf4: Quantisation = { kind: 'load', type: 'nf4', nested: true }
export const int8: Quantisation = { kind: 'load', type: 'int8' }

/** Bytes that go with weights and come from no one tensor: tables of codes, scales. */
export interface SmallWrite {
  readonly offset: number
  readonly bytes: Uint8Array<ArrayBuffer>
}

interface QuantisedEntry {
  readonly dtype: 'q4' | 'q4n' | 'q8'
  readonly bytes: number
  readonly parts: readonly LoadItem[]
  readonly writes: readonly SmallWrite[]
}

/** Why a weight cannot stand in few bits. */
interface Refusal {
  readonly why: string
}

interface Place {
  readonly piece: LocatedPiece
  /** Number of its first block in the weight. */
  readonly block: number
}

/** The pieces with their first blocks, when each begins a block. */
function placed(entry: WeightEntry, pieces: readonly LocatedPiece[]): readonly Place[] | undefined {
  const places = pieces.map((piece) => ({ piece, block: (piece.piece.row * entry.cols) / quantBlock }))
  return places.every(({ block }) => Number.isInteger(block)) ? places : undefined
}

const reordered = { why: 'the file orders its elements otherwise' } as const

/** A weight whose tensors are all stored in few bits alike; undefined when none is, a reason when they do not fit together. */
export function storedEntry(
  entry: WeightEntry,
  pieces: readonly LocatedPiece[],
  at: number,
): QuantisedEntry | Refusal | undefined {
  const few = pieces.filter(({ quantised, scaled }) => quantised !== undefined || scaled !== undefined)
  if (few.length === 0) return undefined
  if (few.length < pieces.length) return { why: 'the checkpoint has only a part of it in few bits' }
  if (pieces.some(({ piece }) => piece.form !== undefined)) return reordered
  return pieces.every(({ quantised }) => quantised !== undefined)
    ? storedBlocks(entry, pieces, at)
    : storedBytes(entry, pieces, at)
}

const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b))

/** A weight of 8-bit tensors. Blocks are made small enough that none reaches over the end of a tensor. */
function storedBytes(entry: WeightEntry, pieces: readonly LocatedPiece[], at: number): QuantisedEntry | Refusal {
  const all = pieces.flatMap(({ piece, tensor, elements, scaled }) =>
    scaled === undefined ? [] : [{ piece, tensor, elements, scaled }],
  )
  const [first] = all
  const wide = ({ blockCols }: ScaledTensor) => Math.min(blockCols, entry.cols)
  if (
    first === undefined ||
    all.length < pieces.length ||
    all.some(({ scaled }) => scaled.kind !== first.scaled.kind || wide(scaled) !== wide(first.scaled))
  )
    return { why: 'its parts are quantised in different ways' }
  const blockRows = all.reduce((common, { piece, scaled }) => divisor(divisor(common, scaled.blockRows), piece.row), entry.rows)
  const scaling: Scaling8 = {
    numbers: first.scaled.kind,
    rounding: dtypeCode('bf16'),
    blockRows,
    blockCols: wide(first.scaled),
    divisor: first.scaled.divisor,
  }
  const layout = quant8Layout(entry.rows, entry.cols, scaling)
  const across = scalesAcross(entry.cols, scaling)
  const type = dtypeCode(first.scaled.kind === 'fp8' ? 'f8' : 'u8')
  const parts = all.map(({ piece, tensor, elements }): LoadItem => ({
    name: piece.name,
    path: tensor.path,
    fileOffset: tensor.offset,
    elements,
    source: type,
    target: type,
    offset: at + layout.numbers + piece.row * entry.cols,
  }))
  const writes = all.map(({ piece, scaled }): SmallWrite => {
    const scales = Float32Array.from(
      { length: Math.ceil(piece.rows / blockRows) * across },
      (_, i) => scaled.scales[Math.floor((Math.floor(i / across) * blockRows) / scaled.blockRows) * across + (i % across)]!,
    )
    return { offset: at + layout.scales + 4 * (piece.row / blockRows) * across, bytes: new Uint8Array(scales.buffer) }
  })
  return { dtype: 'q8', bytes: layout.bytes, parts, writes: [{ offset: at, bytes: quant8Header(scaling) }, ...writes] }
}

const sameNumbers = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((value, i) => Object.is(value, b[i]))

/** A weight of tensors in blocks of 4 bits. */
function storedBlocks(entry: WeightEntry, pieces: readonly LocatedPiece[], at: number): QuantisedEntry | Refusal {
  const stored = pieces.flatMap(({ quantised }) => (quantised === undefined ? [] : [quantised]))
  const [first] = stored
  const places = placed(entry, pieces)
  const alike = stored.every(
    ({ dtype, code, nested, blockSize }) =>
      dtype === first!.dtype &&
      blockSize === quantBlock &&
      sameNumbers(code, first!.code) &&
      (nested === undefined) === (first!.nested === undefined) &&
      (nested === undefined || (sameNumbers(nested.code, first!.nested!.code) && nested.blockSize % 2 ** nestedShift === 0)),
  )
  if (places === undefined || !alike) return { why: 'its parts have blocks of another size' }
  const dtype = first!.nested === undefined ? 'q4' : 'q4n'
  const shift = groupShiftOf(places.map(({ block }) => block))
  const layout = quant4Layout(dtype, entry.rows * entry.cols, shift)
  const parts: LoadItem[] = []
  const writes: SmallWrite[] = [
    { offset: at, bytes: quant4Header(first!.code, first!.nested?.code, shift, dtypeCode(first!.dtype)) },
  ]
  for (const {
    piece: { quantised, elements },
    block,
  } of places) {
    const { name, packed, absmax, nested } = quantised!
    const raw = (from: typeof packed, type: DType, count: number, offset: number): LoadItem => ({
      name: from.name,
      path: from.path,
      fileOffset: from.offset,
      elements: count,
      source: dtypeCode(type),
      target: dtypeCode(type),
      offset,
    })
    parts.push({ ...raw(packed, 'u8', packed.bytes, at + layout.codes + (block * quantBlock) / 2), name })
    const blocks = Math.ceil(elements / quantBlock)
    if (nested === undefined) parts.push(raw(absmax, 'f32', blocks, at + layout.absmax + block * 4))
    else {
      parts.push(raw(absmax, 'u8', blocks, at + layout.absmax + block))
      const groups = Float32Array.from({ length: 2 * Math.ceil(blocks / 2 ** shift) }, (_, i) =>
        i % 2 === 1 ? nested.offset : nested.absmax[Math.floor(((i / 2) * 2 ** shift) / nested.blockSize)]!,
      )
      writes.push({ offset: at + layout.nested + (block / 2 ** shift) * 8, bytes: new Uint8Array(groups.buffer) })
    }
  }
  return { dtype, bytes: layout.bytes, parts, writes }
}

const sources = { F32: 'f32', BF16: 'bf16', F16: 'f16' } as const

/** A weight that is quantised while it is read. */
export function packedEntry(
  entry: WeightEntry,
  pieces: readonly LocatedPiece[],
  at: number,
  quantisation: Extract<Quantisation, { kind: 'load' }>,
): QuantisedEntry | Refusal {
  if (pieces.some(({ piece }) => piece.form !== undefined)) return reordered
  const [rounding] = pieces.map((piece) => piece.type)
  if (pieces.some(({ tensor, type }) => type !== rounding || !(tensor.dtype in sources)))
    return { why: 'its parts have different types' }
  return quantisation.type === 'int8'
    ? packedRows(entry, pieces, at, dtypeCode(rounding!))
    : packedBlocks(entry, pieces, at, dtypeCode(rounding!), quantisation)
}

/** What an item needs that is read from a file and quantised. */
const readItem = ({ piece, tensor, elements }: LocatedPiece, target: DType, offset: number) => ({
  name: piece.name,
  path: tensor.path,
  fileOffset: tensor.offset,
  elements,
  source: dtypeCode(sources[tensor.dtype as keyof typeof sources]),
  target: dtypeCode(target),
  offset,
})

function packedRows(entry: WeightEntry, pieces: readonly LocatedPiece[], at: number, rounding: number): QuantisedEntry {
  const { rows, cols } = entry
  const scaling: Scaling8 = { numbers: 'int8', rounding, blockRows: 1, blockCols: cols, divisor: 127 }
  const layout = quant8Layout(rows, cols, scaling)
  const parts = pieces.map((located): LoadItem => ({
    ...readItem(located, 'q8', at),
    quantised: () =>
      Promise.resolve({
        kind: 'packRows',
        cols,
        numbersAt: at + layout.numbers + located.piece.row * cols,
        scalesAt: at + layout.scales + 4 * located.piece.row,
      }),
  }))
  return { dtype: 'q8', bytes: layout.bytes, parts, writes: [{ offset: at, bytes: quant8Header(scaling) }] }
}

function packedBlocks(
  entry: WeightEntry,
  pieces: readonly LocatedPiece[],
  at: number,
  rounding: number,
  { type, nested }: Extract<Quantisation, { nested: boolean }>,
): QuantisedEntry | Refusal {
  const places = placed(entry, pieces)
  if (places === undefined) return { why: `its parts do not end on blocks of ${quantBlock}` }
  const dtype = nested ? 'q4n' : 'q4'
  const shift = groupShiftOf(places.map(({ block }) => block))
  const layout = quant4Layout(dtype, entry.rows * entry.cols, shift)
  const parts = places.map(({ piece: located, block }): LoadItem => ({
    ...readItem(located, dtype, at),
    quantised: () =>
      Promise.resolve({
        kind: 'pack',
        fp4: type === 'fp4',
        nested,
        groupShift: shift,
        codesAt: at + layout.codes + (block * quantBlock) / 2,
        absmaxAt: at + layout.absmax + block * (nested ? 1 : 4),
        nestedAt: at + layout.nested + (block / 2 ** shift) * 8,
      }),
  }))
  const header = quant4Header(type === 'fp4' ? fp4Code : nf4Code, nested ? dynamicMap(true) : undefined, shift, rounding)
  return { dtype, bytes: layout.bytes, parts, writes: [{ offset: at, bytes: header }] }
}
