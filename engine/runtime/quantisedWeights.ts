import { dtypeCode, type DType } from '../graph/dtype.ts'
import { dynamicMap, fp4Code, groupShiftOf, nestedShift, nf4Code, quant4Header, quant4Layout, quantBlock } from '../graph/quant4.ts'
import type { WeightEntry } from '../model/weightTable.ts'
import type { LoadItem, LocatedPiece } from './weightArena.ts'

/**
 * `stored`: matrices that the checkpoint has in 4 bits stay so. `load`: the others are quantised on the way in, too. `none`: all
 * become plain numbers.
 */
export type Quantisation =
  | { readonly kind: 'stored' | 'none' }
  | { readonly kind: 'load'; readonly type: 'nf4' | 'fp4'; readonly nested: boolean }

/** Bytes that go with weights and come from no one tensor: tables of codes, scales of maxima. */
export interface SmallWrite {
  readonly offset: number
  readonly bytes: Uint8Array<ArrayBuffer>
}

interface QuantisedEntry {
  readonly dtype: 'q4' | 'q4n'
  readonly bytes: number
  readonly parts: readonly LoadItem[]
  readonly writes: readonly SmallWrite[]
}

/** Why a weight cannot stand in 4-bit blocks. */
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

const sameNumbers = (a: Float32Array, b: Float32Array): boolean => a.length === b.length && a.every((value, i) => Object.is(value, b[i]))

/** A weight whose tensors are all stored in 4 bits alike; undefined when none is, a reason when they do not fit together. */
export function storedEntry(entry: WeightEntry, pieces: readonly LocatedPiece[], at: number): QuantisedEntry | Refusal | undefined {
  const stored = pieces.flatMap(({ quantised }) => (quantised === undefined ? [] : [quantised]))
  if (stored.length === 0) return undefined
  const [first] = stored
  if (stored.length < pieces.length) return { why: 'the checkpoint has only a part of it in 4 bits' }
  if (pieces.some(({ piece }) => piece.form !== undefined)) return { why: 'the file orders its elements otherwise' }
  const places = placed(entry, pieces)
  const alike = stored.every(({ dtype, code, nested, blockSize }) => dtype === first!.dtype && blockSize === quantBlock && sameNumbers(code, first!.code)
    && (nested === undefined) === (first!.nested === undefined)
    && (nested === undefined || (sameNumbers(nested.code, first!.nested!.code) && nested.blockSize % 2 ** nestedShift === 0)))
  if (places === undefined || !alike) return { why: 'its parts have blocks of another size' }
  const dtype = first!.nested === undefined ? 'q4' : 'q4n'
  const shift = groupShiftOf(places.map(({ block }) => block))
  const layout = quant4Layout(dtype, entry.rows * entry.cols, shift)
  const parts: LoadItem[] = []
  const writes: SmallWrite[] = [{ offset: at, bytes: quant4Header(first!.code, first!.nested?.code, shift, dtypeCode(first!.dtype)) }]
  for (const { piece: { quantised, elements }, block } of places) {
    const { name, packed, absmax, nested } = quantised!
    const raw = (from: typeof packed, type: DType, count: number, offset: number): LoadItem =>
      ({ name: from.name, path: from.path, fileOffset: from.offset, elements: count, source: dtypeCode(type), target: dtypeCode(type), offset })
    parts.push({ ...raw(packed, 'u8', packed.bytes, at + layout.codes + (block * quantBlock) / 2), name })
    const blocks = Math.ceil(elements / quantBlock)
    if (nested === undefined) parts.push(raw(absmax, 'f32', blocks, at + layout.absmax + block * 4))
    else {
      parts.push(raw(absmax, 'u8', blocks, at + layout.absmax + block))
      const groups = Float32Array.from({ length: 2 * Math.ceil(blocks / 2 ** shift) }, (_, i) =>
        i % 2 === 1 ? nested.offset : nested.absmax[Math.floor(((i / 2) * 2 ** shift) / nested.blockSize)]!)
      writes.push({ offset: at + layout.nested + (block / 2 ** shift) * 8, bytes: new Uint8Array(groups.buffer) })
    }
  }
  return { dtype, bytes: layout.bytes, parts, writes }
}

/** A weight that is quantised while it is read. */
export function packedEntry(entry: WeightEntry, pieces: readonly LocatedPiece[], at: number, { type, nested }: Extract<Quantisation, { kind: 'load' }>): QuantisedEntry | Refusal {
  if (pieces.some(({ piece }) => piece.form !== undefined)) return { why: 'the file orders its elements otherwise' }
  if (pieces.some(({ scaled }) => scaled !== undefined)) return { why: 'the checkpoint has it in 8 bits' }
  const places = placed(entry, pieces)
  if (places === undefined) return { why: `its parts do not end on blocks of ${quantBlock}` }
  const dtype = nested ? 'q4n' : 'q4'
  const shift = groupShiftOf(places.map(({ block }) => block))
  const layout = quant4Layout(dtype, entry.rows * entry.cols, shift)
  const source = { F32: 'f32', BF16: 'bf16', F16: 'f16' } as const
  const [rounding] = pieces.map((piece) => piece.type)
  if (pieces.some(({ tensor, type: other }) => other !== rounding || !(tensor.dtype in source))) return { why: 'its parts have different types' }
  const parts = places.map(({ piece: { piece, tensor, elements }, block }): LoadItem => ({
    name: piece.name, path: tensor.path, fileOffset: tensor.offset, elements, source: dtypeCode(source[tensor.dtype as keyof typeof source]), target: dtypeCode(dtype), offset: at,
    quantised: () => Promise.resolve({
      kind: 'pack', fp4: type === 'fp4', nested, groupShift: shift, codesAt: at + layout.codes + (block * quantBlock) / 2,
      absmaxAt: at + layout.absmax + block * (nested ? 1 : 4), nestedAt: at + layout.nested + (block / 2 ** shift) * 8,
    }),
  }))
  const header = quant4Header(type === 'fp4' ? fp4Code : nf4Code, nested ? dynamicMap(true) : undefined, shift, dtypeCode(rounding!))
  return { dtype, bytes: layout.bytes, parts, writes: [{ offset: at, bytes: header }] }
}
