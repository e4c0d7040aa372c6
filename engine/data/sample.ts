import { UnslothError } from '#shared/errors.ts'
import { withBos } from './chatTemplate.ts'
import { markedSpans, type ChatRenderer, type TokenSpan } from './completionSpans.ts'
import type { Example } from './examples.ts'
import { knownMarkers, spansByMarkers, type TurnMarkers } from './markers.ts'
import { place, type Row } from './row.ts'
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
  /** Of `ids`, which may have to be read from a file. */
  readonly length?: number
}

/** Tokens of a sample, without reading them. */
export const lengthOf = (sample: Pick<Sample, 'ids' | 'length'>): number => sample.length ?? sample.ids.length

/** Tokens of a sample and those of them that are trained, in order. */
export interface Encoded {
  readonly ids: Int32Array
  readonly spans: readonly TokenSpan[]
}

export interface SampleOptions {
  /** Answers only, for text, Alpaca and conversations. */
  readonly trainOnCompletions: boolean
  /** Also the prompts of `prompt`/`completion`, which are not trained otherwise. */
  readonly trainOnPrompt: boolean
  /** Whether prompts of pairs (also Alpaca's) are masked. */
  readonly pairsMasked: boolean
  /** Of a conversation or a text with markers, only the last answer. */
  readonly lastResponseOnly?: boolean
  /** Markers to look for instead of those that are found automatically. */
  readonly markers?: TurnMarkers
}

/** Labels that train only the spans. */
export function labelsOf(ids: Int32Array, spans: readonly TokenSpan[]): Int32Array {
  const labels = new Int32Array(ids.length).fill(ignored)
  for (const { from, to } of spans) labels.set(ids.subarray(from, to), from)
  return labels
}

/** Labels after the first that are trained: only those are predicted from a token before them. */
export const countTrained = (spans: readonly TokenSpan[]): number =>
  spans.reduce((count, { from, to }) => count + Math.max(0, to - Math.max(1, from)), 0)

const joined = (...parts: readonly ArrayLike<number>[]): Int32Array => {
  const all = new Int32Array(parts.reduce((length, part) => length + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

const shifted = (spans: readonly TokenSpan[], by: number): TokenSpan[] =>
  by === 0 ? [...spans] : spans.map(({ from, to }) => ({ from: from + by, to: to + by }))

const whole = (ids: Int32Array): TokenSpan[] => [{ from: 0, to: ids.length }]

const isAnswer = ({ role }: { readonly role: string }): boolean => role === 'assistant' || role === 'model'

/** OpenAI's `weight: 0`, and `train: false` of other tools: an answer that is read but not learned. Other weights are refused. */
function isUnweighted({ weight, train }: Readonly<Record<string, unknown>>): boolean {
  if (weight !== undefined && weight !== null && ![0, 1, true, false].includes(weight as number))
    throw new UnslothError(
      'DATA',
      `an answer has the weight ${JSON.stringify(weight)}; a weight is 0 (read only) or 1 (learned).`,
      { hint: 'Write 0 or 1, or remove it.' },
    )
  return weight === 0 || weight === false || train === false
}

/** Turns rows into samples. */
export class SampleEncoder {
  private readonly tokenizer: Tokenizer
  private readonly options: SampleOptions
  private readonly renderer: (tools: boolean) => ChatRenderer

  /** `renderer` is asked for when a conversation comes, so that other data need no chat template. */
  constructor(tokenizer: Tokenizer, renderer: (tools: boolean) => ChatRenderer, options: SampleOptions) {
    this.tokenizer = tokenizer
    this.renderer = renderer
    this.options = options
  }

  encode(example: Example, row: Row): Encoded {
    switch (example.kind) {
      case 'pair':
        return this.pair(example.prompt, example.completion)
      case 'text':
        return this.text(example.text)
      case 'chat':
        return this.chat(example, row)
    }
  }

  /**
   * Running text in windows of `chunkSize` tokens, each beginning `chunkSize` − `stride` tokens after the one before; EOS follows
   * each.
   */
  windows(text: string, { chunkSize, stride }: { readonly chunkSize: number; readonly stride: number }): Encoded[] {
    const ids = this.tokenizer.encode(text)
    const end = this.tokenizer.eosId === undefined ? [] : [this.tokenizer.eosId]
    const windows: Encoded[] = []
    for (let from = 0; from < ids.length; from += chunkSize - stride) {
      const window = joined(ids.subarray(from, from + chunkSize), end)
      windows.push({ ids: window, spans: whole(window) })
      if (from + chunkSize >= ids.length) break
    }
    return windows
  }

  /** [BOS] + prompt + completion + [EOS]; the two are tokenised apart, so that the boundary is where generation has it. */
  private pair(prompt: string, completion: string): Encoded {
    const answer = this.tokenizer.encode(completion)
    const body = withBos(this.tokenizer, joined(this.tokenizer.encode(prompt), answer))
    const ids = joined(body, this.ending(body, completion))
    return { ids, spans: [{ from: this.options.pairsMasked ? body.length - answer.length : 0, to: ids.length }] }
  }

  private text(text: string): Encoded {
    const { trainOnCompletions, lastResponseOnly = false, markers = knownMarkers(text) } = this.options
    const bare = encodeMarked(this.tokenizer, text)
    const body = withBos(this.tokenizer, bare.ids)
    const ids = joined(body, this.ending(body, text))
    if (!trainOnCompletions && !lastResponseOnly) return { ids, spans: whole(ids) }
    const answers = markers === undefined ? [] : spansByMarkers(text, markers)
    const shift = body.length - bare.ids.length
    const spans = markedSpans(this.tokenizer, text, bare, lastResponseOnly ? answers.slice(-1) : answers)
    return { ids, spans: shifted(spans, shift).map(({ from, to }) => ({ from, to: to === body.length ? ids.length : to })) }
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

  private chat(example: ChatExample, row: Row): Encoded {
    const { messages, promptMessages } = example
    const { trainOnCompletions, trainOnPrompt, lastResponseOnly = false } = this.options
    const answersOnly = trainOnCompletions || lastResponseOnly || (promptMessages > 0 && !trainOnPrompt)
    try {
      const renderer = this.renderer(example.tools !== undefined)
      const unweighted = messages.some((message) => isAnswer(message) && isUnweighted(message))
      if (answersOnly || unweighted) return this.answers(renderer, example, answersOnly)
      const ids = withBos(
        this.tokenizer,
        this.tokenizer.encode(renderer.template.render(messages, example.tools && { tools: example.tools })),
      )
      return { ids, spans: whole(ids) }
    } catch (error) {
      if (!UnslothError.is(error, 'DATA')) throw error
      throw new UnslothError('DATA', `${place(row)}: ${error.message}`, {
        ...(error.hint !== undefined && { hint: error.hint }),
        cause: error,
      })
    }
  }

  /** The answers alone, or everything but the answers that are marked as not to be learned. */
  private answers(renderer: ChatRenderer, { messages, tools, promptMessages }: ChatExample, answersOnly: boolean): Encoded {
    const { text, answers, foundBy } = renderer.render(messages, tools && { tools })
    const turns = messages.filter(isAnswer)
    const inPrompt = messages.slice(0, promptMessages).filter(isAnswer).length
    const matched = answers.length === turns.length
    if (foundBy === 'none' || (!matched && (inPrompt > 0 || turns.some(isUnweighted))))
      throw new UnslothError('DATA', `the answers of the assistant could not be found in what ${renderer.template.name} makes.`, {
        hint:
          'Set training.train_on_completions to false, give data.instruction_part and data.response_part, ' +
          'or give the data as prompt and completion.',
      })
    const bare = encodeMarked(this.tokenizer, text)
    const ids = withBos(this.tokenizer, bare.ids)
    const shift = ids.length - bare.ids.length
    const spans = (chosen: typeof answers): TokenSpan[] => shifted(markedSpans(this.tokenizer, text, bare, chosen), shift)
    const left = (index: number): boolean => matched && isUnweighted(turns[index]!)
    if (!answersOnly) return { ids, spans: gaps(spans(answers.filter((_, index) => left(index))), ids.length) }
    const learned = answers.filter((_, index) => index >= inPrompt && !left(index))
    return { ids, spans: spans(this.options.lastResponseOnly === true ? learned.slice(-1) : learned) }
  }
}

/** What the spans leave of `length` tokens. */
function gaps(spans: readonly TokenSpan[], length: number): TokenSpan[] {
  const ends = [0, ...spans.map(({ to }) => to)]
  return ends.map((from, index) => ({ from, to: spans[index]?.from ?? length })).filter(({ from, to }) => from < to)
}

const encodeMarked = (tokenizer: Tokenizer, text: string): { ids: Int32Array; marks?: { at: number[]; tokens: number[] } } =>
  tokenizer.encodeMarked?.(text) ?? { ids: tokenizer.encode(text) }
