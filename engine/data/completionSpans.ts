import type { ChatMessage, ChatTemplate, RenderOptions } from './chatTemplate.ts'
import { spansByMarkers, templateMarkers, type TextSpan, type TurnMarkers } from './markers.ts'
import type { Tokenizer } from './tokenizer.ts'

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
  private cached: { readonly markers: TurnMarkers | undefined } | undefined

  constructor(template: ChatTemplate) {
    this.template = template
  }

  render(messages: readonly ChatMessage[], options: RenderOptions = {}): RenderedChat {
    const text = this.template.render(messages, options)
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
