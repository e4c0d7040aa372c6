import {
  ByteLevelPreTokenizer,
  SequencePreTokenizer,
  SplitPreTokenizer,
  type PreTokenizer,
  type Tokenizer as HubTokenizer,
} from '@huggingface/tokenizers'
import { isJsonObject } from '../io/jsonText.ts'
import { BpeModel, byteCharacters } from './bpe.ts'
import type { TokenizerFiles } from './tokenizerFiles.ts'

/** Places in a text at which a token begins for certain, and how many tokens come before each. In order. */
export interface TokenMarks {
  readonly at: number[]
  readonly tokens: number[]
}

/** Words whose ids are kept, at most; then the older half is forgotten. */
const keptWords = 1 << 16
/** Longer words do not come again. */
const keptLength = 64

type Stage = (words: readonly string[], section: number) => readonly string[]

interface AddedToken {
  readonly id: number
  readonly lstrip: boolean
  readonly rstrip: boolean
}

/** Unicode's white space, which the native engine means by \s; JavaScript's has U+FEFF and lacks U+0085. */
const space = '\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'
const trailingSpace = new RegExp(`[${space}]+$`)
const leadingSpace = new RegExp(`^[${space}]+`)

/** Punctuation as the native engine knows it: its table is older than that of JavaScript, and models were trained with it. */
const punctuation =
  '(?![\\u061d\\u09fd\\u0a76\\u0c77\\u0c84\\u1b4e\\u1b4f\\u1b7d-\\u1b7f\\u2e43-\\u2e4f\\u2e52-\\u2e5d])' +
  '[\\p{P}\\u166d!-/:-@[-`{-~]'

/** The pattern with \s and \S as Unicode has them. */
function withUnicodeSpace(pattern: RegExp): RegExp {
  let inClass = 0
  let source = ''
  for (let at = 0; at < pattern.source.length; at++) {
    const two = pattern.source.slice(at, at + 2)
    if (two.startsWith('\\')) {
      source += two === '\\s' ? (inClass > 0 ? space : `[${space}]`) : two === '\\S' && inClass === 0 ? `[^${space}]` : two
      at++
      continue
    }
    if (two.startsWith('[')) inClass++
    else if (two.startsWith(']')) inClass--
    source += two[0]!
  }
  return new RegExp(source, pattern.flags)
}

/** Words of a text by a pattern; what lies between matches is a word, too. */
function cutByPattern(text: string, pattern: RegExp): readonly string[] {
  const found = text.match(pattern) ?? []
  let length = 0
  for (const word of found) length += word.length
  if (length === text.length) return found
  const words: string[] = []
  let from = 0
  for (const match of text.matchAll(pattern)) {
    if (match.index > from) words.push(text.slice(from, match.index))
    words.push(match[0])
    from = match.index + match[0].length
  }
  if (from < text.length) words.push(text.slice(from))
  return words
}

const patternStage = (pattern: RegExp): Stage => {
  const corrected = withUnicodeSpace(pattern)
  return (words) =>
    words.length === 1 ? cutByPattern(words[0]!, corrected) : words.flatMap((word) => cutByPattern(word, corrected))
}

/** Metaspace that also splits: each `▁` begins a word. */
const splitAtSpaces: Stage = (words) => words.flatMap((word) => word.match(/▁[^▁]*|[^▁]+/gu) ?? [])

function stageOf(part: PreTokenizer, definition: unknown): Stage[] {
  if (
    part instanceof SplitPreTokenizer &&
    part.pattern !== null &&
    part.config.invert !== true &&
    /^isolated$/i.test(String(part.config.behavior))
  )
    return [patternStage(part.pattern)]
  // The library knows only ASCII digits; the native engine takes every numeric character.
  if (isJsonObject(definition) && definition.type === 'Digits')
    return [patternStage(definition.individual_digits === true ? /\p{N}/gu : /\p{N}+/gu)]
  if (isJsonObject(definition) && definition.type === 'Punctuation') {
    const behavior = typeof definition.behavior === 'string' ? definition.behavior.toLowerCase() : 'isolated'
    if (behavior === 'contiguous') return [patternStage(new RegExp(`(?:${punctuation})+`, 'gu'))]
    if (behavior === 'isolated') return [patternStage(new RegExp(punctuation, 'gu'))]
  }
  const own: Stage = (words, section) => part.pre_tokenize([...words], { section_index: section })
  const splits = isJsonObject(definition) && definition.type === 'Metaspace' && definition.split !== false
  return splits ? [own, splitAtSpaces] : [own]
}

/** The stages before the model, and whether the last of them, left out here, would write bytes as characters. */
function stagesOf(hub: HubTokenizer, definition: unknown): { stages: Stage[]; byteLevel: boolean } | undefined {
  const pre = hub.pre_tokenizer
  if (pre === null) return { stages: [], byteLevel: false }
  const sequence = pre instanceof SequencePreTokenizer
  const described =
    sequence && isJsonObject(definition) && Array.isArray(definition.pretokenizers)
      ? (definition.pretokenizers as unknown[])
      : [definition]
  const parts = (sequence ? pre.tokenizers : [pre]).flatMap((part, index) =>
    part === null ? [] : [{ part, described: described[index] }],
  )
  const at = parts.findIndex(({ part }) => part instanceof ByteLevelPreTokenizer)
  if (parts.slice(at + 1).some(({ part }) => part instanceof ByteLevelPreTokenizer)) return undefined
  const stages = (at < 0 ? parts : parts.slice(0, at)).flatMap(({ part, described: own }) => stageOf(part, own))
  const bytes = at < 0 ? undefined : (parts[at]!.part as ByteLevelPreTokenizer)
  if (bytes?.add_prefix_space === true) stages.push((words) => words.map((word) => (word.startsWith(' ') ? word : ` ${word}`)))
  if (bytes?.use_regex === true) stages.push(patternStage(bytes.pattern))
  if (bytes === undefined || at === parts.length - 1) return { stages, byteLevel: bytes !== undefined }
  // What comes after it sees the characters that stand for bytes.
  const encoder = new TextEncoder()
  stages.push((words) => words.map((word) => Array.from(encoder.encode(word), (byte) => byteCharacters[byte]!).join('')))
  return {
    stages: [...stages, ...parts.slice(at + 1).flatMap(({ part, described: own }) => stageOf(part, own))],
    byteLevel: false,
  }
}

const escaped = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')

/** Finds added tokens, the longest where several begin. */
const finder = (contents: readonly string[]): RegExp | undefined =>
  contents.length === 0
    ? undefined
    : new RegExp(
        [...contents]
          .sort((a, b) => b.length - a.length)
          .map(escaped)
          .join('|'),
        'g',
      )

/** Text in which every form of normalising that a tokenizer uses by itself changes nothing. */
const plainForNfc = /^[\0-\u02ff]*$/

/**
 * Encodes text as the tokenizer library does, ten times faster: the library finds the pieces (normalising, pre-tokenizing), words
 * are merged on ids and remembered. Takes BPE tokenizers; others are left to the library.
 */
export class WordEncoder {
  private readonly hub: HubTokenizer
  private readonly model: BpeModel
  private readonly stages: readonly Stage[]
  private readonly byteLevel: boolean
  private readonly onlyNfc: boolean
  private readonly plain: RegExp | undefined
  private readonly normalized: RegExp | undefined
  private readonly added: ReadonlyMap<string, AddedToken>
  private recent = new Map<string, Int32Array>()
  private older = new Map<string, Int32Array>()
  private buffer = new Int32Array(4096)
  private length = 0

  private constructor(
    hub: HubTokenizer,
    model: BpeModel,
    { stages, byteLevel }: { stages: readonly Stage[]; byteLevel: boolean },
    { plain, normalized, added }: { plain: string[]; normalized: string[]; added: Map<string, AddedToken> },
    onlyNfc: boolean,
  ) {
    this.hub = hub
    this.model = model
    this.stages = stages
    this.byteLevel = byteLevel
    this.onlyNfc = onlyNfc
    this.plain = finder(plain)
    this.normalized = finder(normalized)
    this.added = added
  }

  /** Undefined when the tokenizer has something that only the library does. */
  static create(hub: HubTokenizer, { definition, config }: TokenizerFiles): WordEncoder | undefined {
    if (config.remove_space === true || config.do_lowercase_and_remove_accent === true) return undefined
    const cut = stagesOf(hub, definition.pre_tokenizer)
    if (cut === undefined) return undefined
    const model = BpeModel.create(definition.model, cut.byteLevel)
    if (model === undefined) return undefined
    const tokens = { plain: [] as string[], normalized: [] as string[], added: new Map<string, AddedToken>() }
    for (const { id, content, ...flags } of definition.added_tokens) {
      if (flags.single_word === true) return undefined
      if (content === '') continue
      const token = { id, lstrip: flags.lstrip === true, rstrip: flags.rstrip === true }
      const changed = flags.normalized === true && hub.normalizer !== null ? hub.normalizer.normalize(content) : undefined
      ;(changed === undefined ? tokens.plain : tokens.normalized).push(changed ?? content)
      tokens.added.set(changed ?? content, token)
    }
    const { normalizer } = definition
    return new WordEncoder(hub, model, cut, tokens, isJsonObject(normalizer) && normalizer.type === 'NFC')
  }

  /** Ids of a text without anything before or after. `marks` is filled when given. */
  encode(text: string, marks?: TokenMarks): Int32Array {
    this.length = 0
    this.sections(text, this.plain, 0, (section, at, index) => this.section(section, at, index, marks), marks)
    return this.buffer.slice(0, this.length)
  }

  /** Added tokens become their ids at once; `each` gets what stands between them, with its place and its number. */
  private sections(
    text: string,
    pattern: RegExp | undefined,
    offset: number,
    each: (section: string, at: number, index: number) => void,
    marks: TokenMarks | undefined,
  ): void {
    let index = 0
    let from = 0
    const between = (to: number, token?: AddedToken): void => {
      if (to <= from) return
      const section = token?.lstrip === true ? text.slice(from, to).replace(trailingSpace, '') : text.slice(from, to)
      if (section !== '') each(section, offset + from, index)
      index++
    }
    if (pattern !== undefined) {
      pattern.lastIndex = 0
      for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
        const token = this.added.get(match[0])!
        const next = pattern.lastIndex
        between(match.index, token)
        this.mark(marks, offset + match.index)
        this.push(token.id)
        index++
        from = next
        if (token.rstrip) from += leadingSpace.exec(text.slice(from))?.[0].length ?? 0
        pattern.lastIndex = from
        this.mark(marks, offset + from)
      }
    }
    between(text.length)
  }

  private section(section: string, at: number, index: number, marks: TokenMarks | undefined): void {
    const { normalizer } = this.hub
    const text = normalizer === null || (this.onlyNfc && plainForNfc.test(section)) ? section : normalizer.normalize(section)
    const same = text === section
    const kept = same ? marks : undefined
    if (!same) this.mark(marks, at)
    if (this.normalized === undefined) this.words(text, at, index, kept)
    else this.sections(text, this.normalized, at, (part, partAt) => this.words(part, partAt, index, kept), kept)
  }

  private words(text: string, at: number, section: number, marks: TokenMarks | undefined): void {
    let words: readonly string[] = [text]
    for (const stage of this.stages) words = stage(words, section)
    if (!this.byteLevel)
      words = words.length === 1 ? this.cutBeforeSpaces(words[0]!) : words.flatMap((word) => this.cutBeforeSpaces(word))
    let total = 0
    if (marks !== undefined) for (const word of words) total += word.length
    // Pre-tokenizers keep the length of the text, or put one character before it.
    const shift = total - text.length
    let place = at - shift
    const marked =
      marks !== undefined &&
      (shift === 0 || (shift === 1 && words[0]?.endsWith(text.slice(0, words[0].length - 1).replaceAll(' ', '▁')) === true))
    if (marks !== undefined) this.mark(marks, at)
    for (const word of words) {
      if (marked && place > at) this.mark(marks, place)
      place += word.length
      this.word(word)
    }
  }

  private cutBeforeSpaces(word: string): string[] {
    const words: string[] = []
    let from = 0
    for (let at = word.indexOf('▁', 1); at >= 0; at = word.indexOf('▁', at + 1)) {
      if (this.model.joinedBeforeSpace.has(word[at - 1]!)) continue
      words.push(word.slice(from, at))
      from = at
    }
    words.push(from === 0 ? word : word.slice(from))
    return words
  }

  private word(word: string): void {
    if (word === '') return
    let ids = this.recent.get(word)
    if (ids === undefined) {
      ids = this.older.get(word) ?? this.model.encode(word)
      if (word.length <= keptLength) this.keep(word, ids)
    }
    if (this.length + ids.length > this.buffer.length) this.grow(ids.length)
    for (const id of ids) this.buffer[this.length++] = id
  }

  private keep(word: string, ids: Int32Array): void {
    if (this.recent.size >= keptWords / 2) {
      this.older = this.recent
      this.recent = new Map()
    }
    this.recent.set(word, ids)
  }

  private push(id: number): void {
    if (this.length === this.buffer.length) this.grow(1)
    this.buffer[this.length++] = id
  }

  private grow(more: number): void {
    const larger = new Int32Array(Math.max(this.buffer.length * 2, this.length + more))
    larger.set(this.buffer)
    this.buffer = larger
  }

  private mark(marks: TokenMarks | undefined, at: number): void {
    if (marks === undefined || marks.at.at(-1) === at) return
    marks.at.push(at)
    marks.tokens.push(this.length)
  }
}
