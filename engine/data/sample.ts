import { UnslothError } from '#shared/errors.ts'
import { encodeRendered, withBos } from './chatTemplate.ts'
import { tokenSpans, type ChatRenderer, type TokenSpan } from './completionSpans.ts'
import type { Example } from './formats.ts'
import { knownMarkers, spansByMarkers, type TurnMarkers } from './markers.ts'
import { place, type Row } from './readRows.ts'
import type { Tokenizer } from './tokenizer.ts'

type ChatExample = Example & { readonly kind: 'chat' }

/** Not trained. */
export const ignored = -100

/** What the model reads and what of it it learns. */
export interface Sample {
  readonly ids: Int32Array
  /** As long as `ids`: the id where it is trained, −100 where not. The first one is never predicted. */
  readonly labels: Int32Array
  /** Labels that count: all but the first. */
  readonly labelled: number
  readonly file: string
  /** Counts from 1. */
  readonly line: number
}

export interface SampleOptions {
  /** Answers only, for text, Alpaca and conversations. */
  readonly trainOnCompletions: boolean
  /** Also the prompts of `prompt`/`completion`, which are not trained otherwise. */
  readonly trainOnPrompt: boolean
  /** Whether prompts of pairs (also Alpaca's) are masked. */
  readonly pairsMasked: boolean
}

/** Labels after the first that are not −100: only those are predicted from a token before them. */
export function countLabelled(labels: ArrayLike<number>): number {
  let count = 0
  for (let at = 1; at < labels.length; at++) if (labels[at] !== ignored) count++
  return count
}

const joined = (...parts: readonly ArrayLike<number>[]): Int32Array => {
  const all = new Int32Array(parts.reduce((length, part) => length + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/** Labels that train only the spans. */
function labelsOf(ids: Int32Array, spans: readonly TokenSpan[]): Int32Array {
  const labels = new Int32Array(ids.length).fill(ignored)
  for (const { from, to } of spans) labels.set(ids.subarray(from, to), from)
  return labels
}

/** Turns rows into samples; what it can only find out from the data (markers of a text) it keeps for the rows that follow. */
export class SampleEncoder {
  private readonly tokenizer: Tokenizer
  private readonly options: SampleOptions
  private readonly renderer: (tools: boolean) => ChatRenderer
  private textMarkers: TurnMarkers | undefined

  /** `renderer` is asked for when a conversation comes, so that other data need no chat template. */
  constructor(tokenizer: Tokenizer, renderer: (tools: boolean) => ChatRenderer, options: SampleOptions) {
    this.tokenizer = tokenizer
    this.renderer = renderer
    this.options = options
  }

  encode(example: Example, row: Row): Sample {
    const { ids, labels } = this.tokens(example, row)
    return { ids, labels, labelled: countLabelled(labels), file: row.file, line: row.line }
  }

  private tokens(example: Example, row: Row): { ids: Int32Array; labels: Int32Array } {
    switch (example.kind) {
      case 'pair':
        return this.pair(example.prompt, example.completion)
      case 'text':
        return this.text(example.text)
      case 'chat':
        return this.chat(example, row)
    }
  }

  /** [BOS] + prompt + completion + [EOS]; the two are tokenised apart, so that the boundary is where generation has it. */
  private pair(prompt: string, completion: string): { ids: Int32Array; labels: Int32Array } {
    const answer = this.tokenizer.encode(completion)
    const body = withBos(this.tokenizer, joined(this.tokenizer.encode(prompt), answer))
    const ids = joined(body, this.ending(body, completion))
    const trained = { from: this.options.pairsMasked ? body.length - answer.length : 0, to: ids.length }
    return { ids, labels: labelsOf(ids, [trained]) }
  }

  private text(text: string): { ids: Int32Array; labels: Int32Array } {
    const bare = this.tokenizer.encode(text)
    const body = withBos(this.tokenizer, bare)
    const ids = joined(body, this.ending(body, text))
    if (!this.options.trainOnCompletions) return { ids, labels: ids.slice() }
    this.textMarkers ??= knownMarkers(text)
    const answers = this.textMarkers === undefined ? [] : spansByMarkers(text, this.textMarkers)
    const shift = body.length - bare.length
    const spans = tokenSpans(this.tokenizer, text, bare, answers).map(({ from, to }) => ({
      from: from + shift, to: to === bare.length ? ids.length : to + shift,
    }))
    return { ids, labels: labelsOf(ids, spans) }
  }

  /** What the tokenizer puts after a text, or EOS; nothing when the text already ends with one. */
  private ending(ids: Int32Array, text: string): readonly number[] {
    const { suffixIds, eosId, eosIds } = this.tokenizer
    const ending = suffixIds.length > 0 ? suffixIds : eosId === undefined ? [] : [eosId]
    const last = ids.at(-1)
    if (ending.length === 0 || (last !== undefined && eosIds.includes(last))) return []
    const shown = text.trimEnd()
    return eosIds.some((id) => shown.endsWith(this.tokenizer.tokenOf(id) ?? '\0')) ? [] : ending
  }

  private chat(example: ChatExample, row: Row): { ids: Int32Array; labels: Int32Array } {
    const { messages, tools, promptMessages } = example
    const completions = this.options.trainOnCompletions || (promptMessages > 0 && !this.options.trainOnPrompt)
    try {
      const renderer = this.renderer(tools !== undefined)
      if (completions) return this.answers(renderer, example)
      const ids = encodeRendered(this.tokenizer, renderer.template.render(messages, tools && { tools }))
      return { ids, labels: ids.slice() }
    } catch (error) {
      if (!UnslothError.is(error, 'DATA')) throw error
      throw new UnslothError(
        'DATA', `${place(row)}: ${error.message}`, { ...(error.hint !== undefined && { hint: error.hint }), cause: error },
      )
    }
  }

  private answers(
    renderer: ChatRenderer, { messages, tools, promptMessages }: ChatExample,
  ): { ids: Int32Array; labels: Int32Array } {
    const { text, answers, foundBy } = renderer.render(messages, tools && { tools })
    if (foundBy === 'none')
      throw new UnslothError('DATA', `the answers of the assistant could not be found in what ${renderer.template.name} makes.`, {
        hint: 'Set training.train_on_completions to false, or give the data as prompt and completion.',
      })
    const inPrompt = messages.slice(0, promptMessages).filter(({ role }) => role === 'assistant' || role === 'model').length
    const bare = this.tokenizer.encode(text)
    const ids = withBos(this.tokenizer, bare)
    const shift = ids.length - bare.length
    const spans = tokenSpans(this.tokenizer, text, bare, answers.slice(inPrompt))
    return { ids, labels: labelsOf(ids, spans.map(({ from, to }) => ({ from: from + shift, to: to + shift }))) }
  }
}
