import { UnslothError, type ErrorCode } from '#shared/errors.ts'
import { chatTemplateFor } from './chatTemplate.ts'
import { ChatRenderer } from './completionSpans.ts'
import { isDesired, readExample, type Example } from './examples.ts'
import type { FormatChoice } from './formats.ts'
import type { TurnMarkers } from './markers.ts'
import { parseRow, place, type Row, type SourceRow } from './row.ts'
import { countTrained, SampleEncoder, type Encoded } from './sample.ts'
import type { Tokenizer } from './tokenizer.ts'

/** What to do with a sample of more than `maxSeqLength` tokens: cut its end, cut it into several, leave it out, or stop. */
export type TooLong = 'truncate' | 'split' | 'drop' | 'error'

/** All that decides what a row becomes; goes to other threads and into the key of the cache. */
export interface EncodePlan {
  readonly format: FormatChoice
  readonly maxSeqLength: number
  readonly tooLong: TooLong
  readonly trainOnCompletions: boolean
  readonly trainOnPrompt: boolean
  readonly lastResponseOnly: boolean
  readonly markers: TurnMarkers | undefined
  /** A Jinja template or the name of one. */
  readonly chatTemplate: string | undefined
  /** Milliseconds: what a template takes for now. */
  readonly now: number | undefined
  /** Windows of raw text. */
  readonly chunkSize: number
  readonly stride: number
}

/** Why a row did not become a sample as it is. */
export type RowNote = 'truncated' | 'split' | 'tooLong' | 'empty' | 'masked' | 'undesired'

/** What became of one row. */
export interface RowOutcome {
  readonly samples: readonly Encoded[]
  readonly note?: RowNote
  /** `fatal`: not to be skipped, whatever the recipe says. */
  readonly problem?: { readonly code: ErrorCode; readonly message: string; readonly hint: string; readonly fatal: boolean }
}

const isBlank = (example: Example): boolean =>
  example.kind !== 'chat' && (example.kind === 'text' ? example.text : example.prompt + example.completion).trim() === ''

function cut({ ids, spans }: Encoded, from: number, to: number): Encoded {
  const kept = spans.map((span) => ({ from: Math.max(span.from, from) - from, to: Math.min(span.to, to) - from }))
  return { ids: ids.slice(from, to), spans: kept.filter((span) => span.from < span.to) }
}

/** Makes samples of rows by a plan. The same plan gives the same samples in every thread. */
export class RowEncoder {
  private readonly plan: EncodePlan
  private readonly encoder: SampleEncoder

  constructor(tokenizer: Tokenizer, plan: EncodePlan) {
    this.plan = plan
    const { format, trainOnCompletions, trainOnPrompt, lastResponseOnly, markers, chatTemplate, now } = plan
    const renderers = new Map<boolean, ChatRenderer>()
    const renderer = (tools: boolean): ChatRenderer => {
      const made =
        renderers.get(tools) ??
        new ChatRenderer(
          chatTemplateFor(tokenizer, {
            tools,
            ...(chatTemplate !== undefined && { template: chatTemplate }),
            ...(now !== undefined && { now: new Date(now) }),
          }),
          markers,
        )
      renderers.set(tools, made)
      return made
    }
    const answersOnly = format.format === 'completion' || format.format === 'preference'
    this.encoder = new SampleEncoder(tokenizer, renderer, {
      trainOnCompletions,
      trainOnPrompt,
      lastResponseOnly,
      pairsMasked: answersOnly ? !trainOnPrompt : trainOnCompletions,
      ...(markers && { markers }),
    })
  }

  encode(source: SourceRow): RowOutcome {
    try {
      return this.outcome(parseRow(source))
    } catch (error) {
      if (!UnslothError.is(error)) throw error
      return {
        samples: [],
        problem: { code: error.code, message: error.message, hint: error.hint ?? '', fatal: error.code !== 'DATA' },
      }
    }
  }

  private outcome(row: Row): RowOutcome {
    const { format } = this.plan
    if (!isDesired(row, format)) return { samples: [], note: 'undesired' }
    const example = readExample(row, format)
    if (isBlank(example)) return { samples: [], note: 'empty' }
    if (format.format === 'raw' && example.kind === 'text') return { samples: this.encoder.windows(example.text, this.plan) }
    return this.fit(this.encoder.encode(example, row), row)
  }

  /** The sample cut or refused as the plan says, and without what has nothing to learn. */
  private fit(sample: Encoded, row: Row): RowOutcome {
    const { maxSeqLength, tooLong } = this.plan
    const { length } = sample.ids
    if (length <= maxSeqLength) return countTrained(sample.spans) > 0 ? { samples: [sample] } : { samples: [], note: 'masked' }
    if (tooLong === 'drop') return { samples: [], note: 'tooLong' }
    if (tooLong === 'error')
      return {
        samples: [],
        problem: {
          code: 'DATA',
          fatal: true,
          message: `${place(row)}: ${length} tokens, more than max_seq_length (${maxSeqLength}).`,
          hint: 'Raise training.max_seq_length, shorten the row, or let long rows be cut with data.too_long: truncate.',
        },
      }
    const starts =
      tooLong === 'split' ? Array.from({ length: Math.ceil(length / maxSeqLength) }, (_, part) => part * maxSeqLength) : [0]
    const parts = starts
      .map((from) => cut(sample, from, Math.min(length, from + maxSeqLength)))
      .filter(({ spans }) => countTrained(spans) > 0)
    return parts.length === 0
      ? { samples: [], note: 'masked' }
      : { samples: parts, note: tooLong === 'split' ? 'split' : 'truncated' }
  }
}
