import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { isJsonObject } from '../io/jsonText.ts'
import type { EncodedBatch } from './encodedBatch.ts'
import { place } from './row.ts'
import type { RowNote } from './rowEncoder.ts'
import type { RowCounts } from './statistics.ts'

/** Places that a message names. */
const named = 5

interface Places {
  count: number
  /** The first few. */
  readonly first: string[]
}

type Kind = RowNote | 'bad'
const kinds: readonly Kind[] = ['truncated', 'split', 'tooLong', 'empty', 'masked', 'undesired', 'bad']

const maskHint =
  'The loss would be 0. Is the column or the chat template the right one for this data and model? ' +
  'Are there answers to learn from? Answers beyond max_seq_length are cut off. ' +
  'training.train_on_completions: false trains on everything.'

/** Rows that did not become samples as they are, counted, with the places of the first few. */
export class RowNotes {
  rows = 0
  private readonly skipBad: boolean
  private readonly places: Record<Kind, Places>
  /** What is wrong with the first bad row. */
  private problem = ''

  constructor(skipBad = false) {
    this.skipBad = skipBad
    this.places = Object.fromEntries(kinds.map((kind) => [kind, { count: 0, first: [] }])) as unknown as Record<Kind, Places>
  }

  /** Takes up the remarks of a batch. Throws what is wrong with a row unless bad rows are skipped. */
  add({ rows, remarks }: EncodedBatch): void {
    this.rows += rows
    for (const { note, problem, file, line } of remarks) {
      if (problem !== undefined && (problem.fatal || !this.skipBad))
        throw new UnslothError(problem.code, problem.message, problem.hint === '' ? {} : { hint: problem.hint })
      if (problem !== undefined && this.problem === '') this.problem = problem.message
      const { first } = this.places[note ?? 'bad']
      this.places[note ?? 'bad'].count++
      if (first.length < named) first.push(place({ file, line }))
    }
  }

  counts(): RowCounts {
    const { truncated, split, tooLong, empty, masked, undesired, bad } = this.places
    return {
      rows: this.rows,
      truncated: truncated.count,
      split: split.count,
      tooLong: tooLong.count,
      empty: empty.count,
      masked: masked.count,
      undesired: undesired.count,
      bad: bad.count,
    }
  }

  warnings(limit: number): string[] {
    const note = (kind: Kind, text: string): string[] => {
      const { count } = this.places[kind]
      return count === 0 ? [] : [`${formatCount(count)} of ${formatCount(this.rows)} rows ${text}: ${this.list(kind)}.`]
    }
    return [
      ...note('bad', 'cannot be read and were left out'),
      ...(this.problem === '' ? [] : [`The first of them: ${this.problem}`]),
      ...note('truncated', `are longer than max_seq_length (${limit} tokens) and were cut`),
      ...note('split', `are longer than max_seq_length (${limit} tokens) and became several samples`),
      ...note('tooLong', `are longer than max_seq_length (${limit} tokens) and were left out`),
      ...note('empty', 'are empty and were left out'),
      ...note('undesired', 'are marked as bad answers and were left out'),
      ...note('masked', 'have nothing to learn from, all their labels are masked, and were left out'),
    ]
  }

  /** Refuses a data set that teaches nothing; warns when it teaches almost nothing. */
  check(samples: number, files: readonly string[]): string[] {
    const masked = this.places.masked.count
    const judged = samples + masked
    const fail = (what: string, hint: string): never => {
      throw new UnslothError('DATA', `${files.join(', ')}: ${what}.`, { hint })
    }
    const tooLongHint = 'They are empty or too long: look at them, or raise training.max_seq_length.'
    if (judged === 0)
      fail(`none of the ${formatCount(this.rows)} rows can be used`, this.problem === '' ? tooLongHint : this.problem)
    if (samples === 0) fail(`all labels are masked (−100) in all ${formatCount(judged)} rows: ${this.list('masked')}`, maskHint)
    return masked / judged >= 0.9 ? [`Nearly all rows have only masked labels (−100). ${maskHint}`] : []
  }

  /** For the cache. */
  plain(): Record<string, unknown> {
    return { rows: this.rows, problem: this.problem, places: this.places }
  }

  static from(value: unknown): RowNotes {
    const notes = new RowNotes(true)
    if (!isJsonObject(value) || !isJsonObject(value.places)) return notes
    notes.rows = Number(value.rows)
    notes.problem = String(value.problem)
    Object.assign(notes.places, value.places)
    return notes
  }

  private list(kind: Kind): string {
    const { count, first } = this.places[kind]
    return first.join(', ') + (count > first.length ? ` and ${formatCount(count - first.length)} more` : '')
  }
}
