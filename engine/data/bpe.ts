import { isJsonObject } from '../io/jsonText.ts'

/** Byte → the character that stands for it in byte-level vocabularies (GPT-2's table). */
export const byteCharacters: readonly string[] = (() => {
  const printable = (byte: number): boolean => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++))
})()

/** Words up to this many symbols are merged by looking for the best pair again and again; longer ones through a heap. */
const shortWord = 32

/** (left, right) → rank and merged id, in flat arrays with open addressing. */
class PairTable {
  private readonly mask: number
  private readonly lefts: Int32Array
  private readonly rights: Int32Array
  readonly ranks: Int32Array
  readonly merged: Int32Array

  constructor(count: number) {
    const size = 2 ** Math.ceil(Math.log2(Math.max(2, count * 2)))
    this.mask = size - 1
    this.lefts = new Int32Array(size).fill(-1)
    this.rights = new Int32Array(size)
    this.ranks = new Int32Array(size)
    this.merged = new Int32Array(size)
  }

  private slot(left: number, right: number): number {
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d)
    let slot = (hash ^ (hash >>> 13)) & this.mask
    while (this.lefts[slot] !== -1 && (this.lefts[slot] !== left || this.rights[slot] !== right)) slot = (slot + 1) & this.mask
    return slot
  }

  /** A pair named again gets the later rank, as in the native engine. */
  set(left: number, right: number, rank: number, merged: number): void {
    const slot = this.slot(left, right)
    this.lefts[slot] = left
    this.rights[slot] = right
    this.ranks[slot] = rank
    this.merged[slot] = merged
  }

  /** Place of the pair in `ranks` and `merged`, or −1. */
  find(left: number, right: number): number {
    const slot = this.slot(left, right)
    return this.lefts[slot] === -1 ? -1 : slot
  }
}

/**
 * Byte-pair merging on ids. It knows only words: what comes before (added tokens, normalising, cutting into words) is done by
 * wordEncoder.ts. Merges are those of the native engine: always the pair of the lowest rank, the leftmost of equals.
 */
export class BpeModel {
  private readonly ids: ReadonlyMap<string, number>
  private readonly pairs: PairTable
  private readonly byteLevel: boolean
  private readonly ignoreMerges: boolean
  /** Ids of the 256 bytes: byte-level characters, or `<0x..>` with byte fallback; −1 for one that the vocabulary lacks. */
  private readonly bytes: Int32Array | undefined
  /** For characters that neither the vocabulary nor its bytes can write; none: they are left out. */
  private readonly unknown: number | undefined
  private readonly fuseUnknown: boolean
  private readonly encoder = new TextEncoder()
  /** Characters before `▁` in any merged token; between others and `▁` no merge ever reaches over. */
  readonly joinedBeforeSpace: ReadonlySet<string>

  private constructor(
    definition: Readonly<Record<string, unknown>>,
    ids: ReadonlyMap<string, number>,
    pairs: PairTable,
    bytes: Int32Array | undefined,
    byteLevel: boolean,
  ) {
    this.ids = ids
    this.pairs = pairs
    this.bytes = bytes
    this.byteLevel = byteLevel
    this.ignoreMerges = definition.ignore_merges === true
    this.unknown = typeof definition.unk_token === 'string' ? ids.get(definition.unk_token) : undefined
    this.fuseUnknown = definition.fuse_unk === true
    const joined = new Set<string>()
    if (!byteLevel)
      for (const token of ids.keys())
        for (let at = token.indexOf('▁', 1); at >= 0; at = token.indexOf('▁', at + 1)) joined.add(token[at - 1]!)
    this.joinedBeforeSpace = joined
  }

  /** `byteLevel`: words come as text and are cut into bytes here. Undefined when the definition asks for more than this does. */
  static create(definition: unknown, byteLevel: boolean): BpeModel | undefined {
    if (
      !isJsonObject(definition) ||
      definition.type !== 'BPE' ||
      !isJsonObject(definition.vocab) ||
      !Array.isArray(definition.merges)
    )
      return undefined
    const { dropout, continuing_subword_prefix: prefix, end_of_word_suffix: suffix } = definition
    if ((dropout !== null && dropout !== undefined && dropout !== 0) || (prefix ?? '') !== '' || (suffix ?? '') !== '')
      return undefined
    const ids = new Map(Object.entries(definition.vocab as Record<string, number>))
    const merges = definition.merges as unknown[]
    const pairs = new PairTable(merges.length)
    for (const [rank, merge] of merges.entries()) {
      const [left, right, more] = typeof merge === 'string' ? merge.split(' ') : (merge as string[])
      const [a, b, ab] = [ids.get(left ?? ''), ids.get(right ?? ''), ids.get(`${left}${right}`)]
      if (a === undefined || b === undefined || ab === undefined || more !== undefined) return undefined
      pairs.set(a, b, rank, ab)
    }
    const byteName = (character: string, byte: number): string =>
      byteLevel ? character : `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`
    const bytes = byteCharacters.map((character, byte) => ids.get(byteName(character, byte)))
    const fallsBack = byteLevel || definition.byte_fallback === true
    return new BpeModel(definition, ids, pairs, fallsBack ? Int32Array.from(bytes, (id) => id ?? -1) : undefined, byteLevel)
  }

  /** Ids of a word. */
  encode(word: string): Int32Array {
    if (this.ignoreMerges) {
      const whole = this.ids.get(
        this.byteLevel ? Array.from(this.encoder.encode(word), (byte) => byteCharacters[byte]!).join('') : word,
      )
      if (whole !== undefined) return Int32Array.of(whole)
    }
    const symbols = this.byteLevel ? this.byteSymbols(word) : this.characters(word)
    if (symbols.length < 2) return symbols
    return symbols.length <= shortWord ? this.mergeShort(symbols) : this.mergeLong(symbols)
  }

  private byteSymbols(word: string): Int32Array {
    const symbols = Int32Array.from(this.encoder.encode(word), (byte) => this.bytes![byte]!)
    if (!symbols.includes(-1)) return symbols
    const { unknown } = this
    return unknown === undefined ? symbols.filter((id) => id >= 0) : symbols.map((id) => (id < 0 ? unknown : id))
  }

  private characters(word: string): Int32Array {
    const symbols: number[] = []
    let afterUnknown = false
    for (const character of word) {
      const id = this.ids.get(character)
      const bytes = id === undefined ? this.bytesOf(character) : undefined
      const unknown = id === undefined && bytes === undefined
      if (id !== undefined) symbols.push(id)
      else if (bytes !== undefined) symbols.push(...bytes)
      else if (this.unknown !== undefined && !(afterUnknown && this.fuseUnknown)) symbols.push(this.unknown)
      afterUnknown = unknown
    }
    return Int32Array.from(symbols)
  }

  /** Ids of the bytes of a character; undefined unless the vocabulary has all of them. */
  private bytesOf(character: string): number[] | undefined {
    if (this.bytes === undefined) return undefined
    const ids = Array.from(this.encoder.encode(character), (byte) => this.bytes![byte]!)
    return ids.includes(-1) ? undefined : ids
  }

  private mergeShort(symbols: Int32Array): Int32Array {
    let length = symbols.length
    for (;;) {
      let [best, bestRank, bestSlot] = [-1, Infinity, -1]
      for (let at = 0; at + 1 < length; at++) {
        const slot = this.pairs.find(symbols[at]!, symbols[at + 1]!)
        if (slot >= 0 && this.pairs.ranks[slot]! < bestRank) [best, bestRank, bestSlot] = [at, this.pairs.ranks[slot]!, slot]
      }
      if (best < 0) return symbols.slice(0, length)
      symbols[best] = this.pairs.merged[bestSlot]!
      symbols.copyWithin(best + 1, best + 2, length)
      length--
    }
  }

  /** The same through a heap of pairs, keyed by rank, then place: rank · 2³¹ + place is exact in a double. */
  private mergeLong(symbols: Int32Array): Int32Array {
    const { length } = symbols
    const next = Int32Array.from({ length }, (_, at) => at + 1)
    const previous = Int32Array.from({ length }, (_, at) => at - 1)
    const heap = new MinHeap(length)
    const offer = (at: number): void => {
      if (at < 0 || next[at]! >= length) return
      const slot = this.pairs.find(symbols[at]!, symbols[next[at]!]!)
      if (slot >= 0) heap.push(this.pairs.ranks[slot]! * 2 ** 31 + at)
    }
    for (let at = 0; at + 1 < length; at++) offer(at)
    for (let key = heap.pop(); key >= 0; key = heap.pop()) {
      const at = key % 2 ** 31
      const right = next[at]!
      if (symbols[at]! < 0 || right >= length) continue
      const slot = this.pairs.find(symbols[at]!, symbols[right]!)
      // An older entry: the pair at this place is another one now.
      if (slot < 0 || this.pairs.ranks[slot]! !== Math.floor(key / 2 ** 31)) continue
      symbols[at] = this.pairs.merged[slot]!
      symbols[right] = -1
      next[at] = next[right]!
      if (next[at] < length) previous[next[at]] = at
      offer(previous[at]!)
      offer(at)
    }
    return symbols.filter((symbol) => symbol >= 0)
  }
}

/** Smallest number first. */
class MinHeap {
  private keys: Float64Array
  private size = 0

  constructor(capacity: number) {
    this.keys = new Float64Array(Math.max(16, capacity))
  }

  push(key: number): void {
    if (this.size === this.keys.length) {
      const larger = new Float64Array(this.size * 2)
      larger.set(this.keys)
      this.keys = larger
    }
    let at = this.size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (this.keys[parent]! <= key) break
      this.keys[at] = this.keys[parent]!
      at = parent
    }
    this.keys[at] = key
  }

  /** The smallest, taken out; −1 when there is none. */
  pop(): number {
    if (this.size === 0) return -1
    const smallest = this.keys[0]!
    const last = this.keys[--this.size]!
    let at = 0
    for (let child = 1; child < this.size; child = 2 * at + 1) {
      if (child + 1 < this.size && this.keys[child + 1]! < this.keys[child]!) child++
      if (this.keys[child]! >= last) break
      this.keys[at] = this.keys[child]!
      at = child
    }
    this.keys[at] = last
    return smallest
  }
}
