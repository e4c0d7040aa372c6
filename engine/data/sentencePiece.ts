import { readFile } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'
import type { AddedTokenSpec } from './tokenizerFiles.ts'

/** Kinds of pieces, by their numbers in sentencepiece_model.proto. */
const kinds = { unknown: 2, control: 3, userDefined: 4, byte: 6 } as const

interface Piece {
  readonly text: string
  readonly score: number
  readonly kind: number
}

/** What a tokenizer.model says, as far as it decides how text is cut. */
export interface SentencePieceModel {
  readonly pieces: readonly Piece[]
  readonly type: 'unigram' | 'bpe'
  readonly byteFallback: boolean
  /** Puts a space before every text. */
  readonly dummyPrefix: boolean
  /** Changes text in ways that are not written here: a table of characters, or spaces that are joined. */
  readonly normalises: boolean
}

interface Field {
  readonly number: number
  readonly value: number | Buffer
}

/** The fields of a protobuf message. Groups, which nobody writes any more, are refused like anything that is none. */
function* fieldsOf(bytes: Buffer): Generator<Field> {
  let at = 0
  const varint = (): number => {
    let [value, scale] = [0, 1]
    for (;;) {
      const byte = bytes[at++]
      if (byte === undefined || scale > 2 ** 63) throw new Error('a number without an end')
      value += (byte & 0x7f) * scale
      scale *= 128
      if (byte < 0x80) return value
    }
  }
  while (at < bytes.length) {
    const tag = varint()
    const [number, wire] = [Math.floor(tag / 8), tag % 8]
    const length = wire === 2 ? varint() : wire === 5 ? 4 : wire === 1 ? 8 : wire === 0 ? 0 : -1
    if (length < 0 || at + length > bytes.length || number === 0) throw new Error('a field without an end')
    yield { number, value: wire === 0 ? varint() : bytes.subarray(at, at + length) }
    at += length
  }
}

function pieceOf(bytes: Buffer): Piece {
  let [text, score, kind] = ['', 0, 1]
  for (const { number, value } of fieldsOf(bytes)) {
    if (number === 1 && typeof value === 'object') text = value.toString('utf8')
    else if (number === 2 && typeof value === 'object' && value.length === 4) score = value.readFloatLE()
    else if (number === 3 && typeof value === 'number') kind = value
  }
  return { text, score, kind }
}

/** Reads the bytes of a tokenizer.model; what is none is an error. */
export function parseSentencePiece(bytes: Buffer): SentencePieceModel {
  const pieces: Piece[] = []
  let model: SentencePieceModel = { pieces, type: 'unigram', byteFallback: false, dummyPrefix: true, normalises: false }
  let [joinsSpaces, table] = [true, false]
  for (const { number, value } of fieldsOf(bytes)) {
    if (typeof value === 'number') continue
    if (number === 1) pieces.push(pieceOf(value))
    else if (number === 2) {
      for (const field of fieldsOf(value)) {
        if (field.number === 3) model = { ...model, type: field.value === 2 ? 'bpe' : 'unigram' }
        if (field.number === 35) model = { ...model, byteFallback: field.value === 1 }
      }
    } else if (number === 3) {
      for (const field of fieldsOf(value)) {
        if (field.number === 2 && typeof field.value === 'object') table = field.value.length > 0
        if (field.number === 3) model = { ...model, dummyPrefix: field.value === 1 }
        if (field.number === 4) joinsSpaces = field.value === 1
      }
    }
  }
  if (pieces.length === 0) throw new Error('no pieces')
  return { ...model, normalises: joinsSpaces || table }
}

/** Reads a tokenizer.model. */
export async function readSentencePiece(path: string): Promise<SentencePieceModel> {
  try {
    return parseSentencePiece(await readFile(path))
  } catch (error) {
    throw new UnslothError('TOKENIZER', `${path}: not a SentencePiece model: ${(error as Error).message}.`, {
      hint: 'Fetch the file again, or take tokenizer.json from a newer upload of the model.',
      cause: error,
    })
  }
}

/** Pairs that join to a piece, best score first: what the merges of the fast form are (transformers' convert_slow_tokenizer). */
function mergesOf(pieces: readonly Piece[], ids: ReadonlyMap<string, number>): [string, string][] {
  const merges: { readonly pair: [string, string]; readonly score: number }[] = []
  for (const { text, score } of pieces) {
    const own: [string, string][] = []
    const characters = Array.from(text)
    let left = ''
    for (const character of characters.slice(0, -1)) {
      left += character
      const right = text.slice(left.length)
      if (ids.has(left) && ids.has(right)) own.push([left, right])
    }
    own.sort((a, b) => ids.get(a[0])! - ids.get(b[0])! || ids.get(a[1])! - ids.get(b[1])!)
    for (const pair of own) merges.push({ pair, score })
  }
  const size = (text: string): number => Array.from(text).length
  return merges
    .sort((a, b) => b.score - a.score || size(b.pair[0]) - size(a.pair[0]) || size(b.pair[1]) - size(a.pair[1]))
    .map(({ pair }) => pair)
}

/** The same tokenizer as a tokenizer.json; undefined when it does what only SentencePiece can. */
export function fastForm({
  pieces,
  type,
  byteFallback,
  dummyPrefix,
  normalises,
}: SentencePieceModel): (Readonly<Record<string, unknown>> & { readonly added_tokens: readonly AddedTokenSpec[] }) | undefined {
  // The tokenizer library has no bytes for unknown characters of unigram models.
  if (normalises || (type === 'unigram' && byteFallback)) return undefined
  const ids = new Map(pieces.map(({ text }, id) => [text, id]))
  const unknown = pieces.findIndex(({ kind }) => kind === kinds.unknown)
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false }
  const added = pieces.flatMap(({ text, kind }, id) =>
    kind === kinds.control || kind === kinds.unknown || kind === kinds.userDefined
      ? [{ id, content: text, ...flags, special: kind !== kinds.userDefined }]
      : [],
  )
  const toSpace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' }
  const space = { type: 'Replace', pattern: { String: ' ' }, content: '▁' }
  const model =
    type === 'bpe'
      ? {
          type: 'BPE',
          dropout: null,
          unk_token: pieces[unknown]?.text ?? null,
          continuing_subword_prefix: null,
          end_of_word_suffix: null,
          fuse_unk: true,
          byte_fallback: byteFallback,
          vocab: Object.fromEntries(ids),
          merges: mergesOf(pieces, ids),
        }
      : {
          type: 'Unigram',
          unk_id: unknown < 0 ? null : unknown,
          byte_fallback: byteFallback,
          vocab: pieces.map(({ text, score }) => [text, score]),
        }
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: dummyPrefix ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, space] } : space,
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        toSpace,
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(dummyPrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model,
  }
}
