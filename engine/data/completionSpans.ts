import type { ChatMessage, ChatTemplate, RenderOptions } from './chatTemplate.ts'
import { spansByMarkers, templateMarkers, type TextSpan, type TurnMarkers } from './markers.ts'
import type { Tokenizer } from './tokenizer.ts'
import type { TokenMarks } from './wordEncoder.ts'

/** A conversation as text, with what the assistant said in it. */
export interface RenderedChat {
  readonly text: string
  /** The answers with what ends them, in order. */
  readonly answers: readonly TextSpan[]
  /** How they were found. `none`: the template shows them in no way that could be recognised. */
  readonly foundBy: 'prefixes' | 'markers' | 'none'
}

/**
 * Renders conversations and finds the answers in them. First by prefixes: an answer is what a rendering of the messages up to
 * and with it has beyond a rendering of those before it with the generation prompt, when each is the beginning of the next.
 * Templates that rewrite earlier turns (thinking models, system prompts moved to the last question) are searched for markers.
 */
export class ChatRenderer {
  readonly template: ChatTemplate
  private readonly given: TurnMarkers | undefined
  private cached: { readonly markers: TurnMarkers | undefined } | undefined
  /** Conversations in which both ways found the same answers, and whether they ever did not. */
  private agreed = 0
  private differed = false

  /** `markers`: to be used instead of what is found automatically. */
  constructor(template: ChatTemplate, markers?: TurnMarkers) {
    this.template = template
    this.given = markers
  }

  render(messages: readonly ChatMessage[], options: RenderOptions = {}): RenderedChat {
    const text = this.template.render(messages, options)
    if (this.given !== undefined) return { text, answers: spansByMarkers(text, this.given), foundBy: 'markers' }
    const quick = this.differed ? undefined : this.byCheckedMarkers(messages, text)
    // Markers need one rendering, prefixes two more for each answer: once markers have proven themselves, they do it alone.
    if (quick !== undefined && this.agreed >= provenAfter) return { text, answers: quick, foundBy: 'markers' }
    const found = this.search(messages, text, options)
    if (quick !== undefined && found.foundBy === 'prefixes') {
      if (sameSpans(quick, found.answers)) this.agreed++
      else this.differed = true
    }
    return found
  }

  /** Answers by markers when each answer of the conversation stands in its span; undefined when anything is unusual. */
  private byCheckedMarkers(messages: readonly ChatMessage[], text: string): TextSpan[] | undefined {
    const markers = this.markers()
    if (markers === undefined) return undefined
    const spans = spansByMarkers(text, markers)
    let index = 0
    for (const { role, content } of messages) {
      if (role !== 'assistant' && role !== 'model') continue
      const span = spans[index++]
      if (span === undefined || typeof content !== 'string') return undefined
      const trimmed = content.trim()
      const at = text.indexOf(trimmed, span.from)
      if (at < 0 || at + trimmed.length > span.to) return undefined
    }
    return index === spans.length ? spans : undefined
  }

  private search(messages: readonly ChatMessage[], text: string, options: RenderOptions): RenderedChat {
    const answers = this.byPrefixes(messages, text, options)
    if (answers !== undefined) return { text, answers, foundBy: 'prefixes' }
    const markers = this.markers()
    if (markers === undefined) return { text, answers: [], foundBy: 'none' }
    return { text, answers: spansByMarkers(text, markers), foundBy: 'markers' }
  }

  /** Markers of the template, looked for once. */
  markers(): TurnMarkers | undefined {
    this.cached ??= { markers: templateMarkers(this.template) }
    return this.cached.markers
  }

  private byPrefixes(messages: readonly ChatMessage[], text: string, options: RenderOptions): TextSpan[] | undefined {
    const spans: TextSpan[] = []
    for (const [index, { role }] of messages.entries()) {
      if (role !== 'assistant' && role !== 'model') continue
      const before = this.attempt(messages.slice(0, index), { ...options, addGenerationPrompt: true })
      const after = index === messages.length - 1 ? text : this.attempt(messages.slice(0, index + 1), options)
      if (before === undefined || after?.startsWith(before) !== true || !text.startsWith(after)) return undefined
      spans.push({ from: before.length, to: after.length })
    }
    return spans
  }

  /** Many templates refuse a beginning of a conversation that they accept whole. */
  private attempt(messages: readonly ChatMessage[], options: RenderOptions): string | undefined {
    if (messages.length === 0) return undefined
    try {
      return this.template.render(messages, options)
    } catch {
      return undefined
    }
  }
}

/** Conversations with the same result by both ways, after which prefixes are no longer rendered. */
const provenAfter = 8

const sameSpans = (a: readonly TextSpan[], b: readonly TextSpan[]): boolean =>
  a.length === b.length && a.every(({ from, to }, index) => from === b[index]!.from && to === b[index]!.to)

/** Tokens from–to, to exclusive. */
export interface TokenSpan {
  readonly from: number
  readonly to: number
}

/** How many of the tokens from `start` on are those of `part`. */
function sharedTokens(part: ArrayLike<number>, ids: ArrayLike<number>, start: number): number {
  let shared = 0
  while (shared < part.length && part[shared] === ids[start + shared]) shared++
  return shared
}

/**
 * Which tokens of `ids` = encode(text) the spans cover. A boundary in the text becomes the number of first tokens that the text
 * before it shares with the whole, so a token that reaches over the start of an answer belongs to the answer. Spans are in order.
 */
export function tokenSpans(tokenizer: Tokenizer, text: string, ids: ArrayLike<number>, spans: readonly TextSpan[]): TokenSpan[] {
  // A boundary after a special token splits the text cleanly: the next one need only encode what follows it.
  let clean = { at: 0, tokens: 0 }
  const boundary = (at: number): number => {
    if (at >= text.length) return ids.length
    let part = tokenizer.encode(text.slice(clean.at, at))
    let shared = sharedTokens(part, ids, clean.tokens)
    // Some tokenizers treat the start of a text in another way than what follows a special token.
    if (shared === 0 && clean.at > 0 && at > clean.at) {
      clean = { at: 0, tokens: 0 }
      part = tokenizer.encode(text.slice(0, at))
      shared = sharedTokens(part, ids, 0)
    }
    const tokens = clean.tokens + shared
    if (shared > 0 && shared === part.length && (splits(tokens - 1) || splits(tokens))) clean = { at, tokens }
    return tokens
  }
  const splits = (token: number): boolean => tokenizer.specialIds.has(ids[token] ?? -1)
  return spans.map(({ from, to }) => ({ from: boundary(from), to: boundary(to) })).filter(({ from, to }) => from < to)
}

/** Index of the last number that is not above `value`, in sorted numbers; −1 when all are. */
function lastNotAbove(sorted: readonly number[], value: number): number {
  let [low, high] = [0, sorted.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (sorted[middle]! <= value) low = middle + 1
    else high = middle
  }
  return low - 1
}

/** The same with the places at which tokens begin: only a boundary inside a word is found by encoding again. */
export function markedSpans(
  tokenizer: Tokenizer,
  text: string,
  { ids, marks }: { readonly ids: Int32Array; readonly marks?: TokenMarks },
  spans: readonly TextSpan[],
): TokenSpan[] {
  if (marks === undefined) return tokenSpans(tokenizer, text, ids, spans)
  const boundary = (at: number): number | undefined => {
    if (at >= text.length) return ids.length
    const found = lastNotAbove(marks.at, at)
    return found >= 0 && marks.at[found] === at ? marks.tokens[found]! : undefined
  }
  const exact = spans.map(({ from, to }) => ({ from: boundary(from), to: boundary(to) }))
  if (exact.some(({ from, to }) => from === undefined || to === undefined)) return tokenSpans(tokenizer, text, ids, spans)
  return exact.map(({ from, to }) => ({ from: from!, to: to! })).filter(({ from, to }) => from < to)
}
