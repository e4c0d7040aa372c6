import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { chatTemplateFor } from './chatTemplate.ts'
import { ChatRenderer } from './completionSpans.ts'
import {
  chooseFormat, readExample, unusedColumnWarnings, type ColumnMapping, type DataFormat, type FormatChoice,
} from './formats.ts'
import { permutation } from './random.ts'
import { place, readRows, type Row } from './readRows.ts'
import { countLabelled, SampleEncoder, type Sample } from './sample.ts'
import { datasetStatistics, namePlaces, type DatasetStatistics, type RowCounts } from './statistics.ts'
import type { Tokenizer } from './tokenizer.ts'

/** What to do with a sample of more than `maxSeqLength` tokens: cut its end, leave it out, or stop. */
export type TooLong = 'truncate' | 'drop' | 'error'

export interface DatasetOptions {
  /** JSONL or JSON files, read in this order. */
  readonly files: readonly string[]
  readonly maxSeqLength: number
  readonly format?: DataFormat | 'auto'
  readonly columns?: ColumnMapping
  /** A Jinja template, or the name of one; default: the model's own. */
  readonly chatTemplate?: string
  /** The time that a template may ask for: the start of the run. */
  readonly now?: Date
  /** Train the answers only, in text with known markers, Alpaca rows and conversations. `prompt`/`completion` always do so… */
  readonly trainOnCompletions?: boolean
  /** …unless their prompts are to be trained, too. */
  readonly trainOnPrompt?: boolean
  readonly tooLong?: TooLong
  /** Only the first so many rows. */
  readonly maxSamples?: number
  readonly onRows?: (rows: number) => void
  readonly signal?: AbortSignal
}

/** What a model is trained or evaluated on. */
export interface Dataset {
  /** In the order of the files; the order of training is made in each epoch. */
  readonly samples: readonly Sample[]
  readonly format: FormatChoice
  readonly rows: RowCounts
  readonly statistics: DatasetStatistics
  /** One line each, for the log and the editor. */
  readonly warnings: readonly string[]
}

const maskHint = 'The loss would be 0. Is the column or the chat template the right one for this data and model? '
  + 'Are there answers to learn from? Answers beyond max_seq_length are cut off. '
  + 'training.train_on_completions: false trains on everything.'

/** Rows set aside while a data set is read. */
class Notes {
  rows = 0
  readonly truncated: Row[] = []
  readonly tooLong: Row[] = []
  readonly empty: Row[] = []
  readonly masked: Row[] = []

  counts(): RowCounts {
    return {
      rows: this.rows, truncated: this.truncated.length, tooLong: this.tooLong.length, empty: this.empty.length,
      masked: this.masked.length,
    }
  }

  warnings(limit: number): string[] {
    const note = (rows: readonly Row[], text: string): string[] =>
      rows.length === 0 ? [] : [`${formatCount(rows.length)} of ${formatCount(this.rows)} rows ${text}: ${namePlaces(rows)}.`]
    return [
      ...note(this.truncated, `are longer than max_seq_length (${limit} tokens) and were cut`),
      ...note(this.tooLong, `are longer than max_seq_length (${limit} tokens) and were left out`),
      ...note(this.empty, 'are empty and were left out'),
      ...note(this.masked, 'have nothing to learn from, all their labels are masked, and were left out'),
    ]
  }
}

const blank = (example: ReturnType<typeof readExample>): boolean =>
  example.kind !== 'chat' && (example.kind === 'text' ? example.text : example.prompt + example.completion).trim() === ''

/** The sample cut or refused as the options say; undefined when it is left out. */
function fit(sample: Sample, row: Row, { maxSeqLength, tooLong = 'truncate' }: DatasetOptions, notes: Notes): Sample | undefined {
  if (sample.ids.length <= maxSeqLength) return sample
  if (tooLong === 'error')
    throw new UnslothError('DATA', `${place(row)}: ${sample.ids.length} tokens, more than max_seq_length (${maxSeqLength}).`, {
      hint: 'Raise training.max_seq_length, shorten the row, or let long rows be cut.',
    })
  if (tooLong === 'drop') {
    notes.tooLong.push(row)
    return undefined
  }
  notes.truncated.push(row)
  const labels = sample.labels.slice(0, maxSeqLength)
  return { ...sample, ids: sample.ids.slice(0, maxSeqLength), labels, labelled: countLabelled(labels) }
}

/** Refuses a data set that teaches nothing; warns when it teaches almost nothing. */
function checkLabels(samples: number, notes: Notes, files: readonly string[]): string[] {
  const judged = samples + notes.masked.length
  const named = files.join(', ')
  if (notes.rows === 0) throw new UnslothError('DATA', `${named}: the data set is empty.`, { hint: 'Give at least one row.' })
  const fail = (what: string, hint: string): never => {
    throw new UnslothError('DATA', `${named}: ${what}.`, { hint })
  }
  const tooLongHint = 'They are empty or too long: look at them, or raise training.max_seq_length.'
  if (judged === 0) fail(`none of the ${formatCount(notes.rows)} rows can be used`, tooLongHint)
  if (samples === 0)
    fail(`all labels are masked (−100) in all ${formatCount(judged)} rows: ${namePlaces(notes.masked)}`, maskHint)
  return notes.masked.length / judged >= 0.9 ? [`Nearly all rows have only masked labels (−100). ${maskHint}`] : []
}

async function breathe(rows: number, { onRows, signal }: DatasetOptions): Promise<void> {
  if (rows % 256 !== 0) return
  onRows?.(rows)
  await new Promise((resolve) => setImmediate(resolve))
  if (signal?.aborted === true) throw new UnslothError('STOPPED', 'Stopped while the data set was read.')
}

/** Reads files, recognises their format, and makes the samples. Every failure names file and line. */
export async function buildDataset(options: DatasetOptions, tokenizer: Tokenizer): Promise<Dataset> {
  const { files, trainOnCompletions = false, trainOnPrompt = false, maxSamples = Infinity } = options
  if (files.length === 0) throw new UnslothError('DATA', 'No data file is given.', { hint: 'Name one in data.local_dataset.' })
  const notes = new Notes()
  const samples: Sample[] = []
  let format: FormatChoice | undefined
  let columnWarnings: string[] = []
  let encoder: SampleEncoder | undefined
  let renderer: ChatRenderer | undefined
  const template = (tools: boolean) => chatTemplateFor(tokenizer, {
    tools,
    ...(options.chatTemplate !== undefined && { template: options.chatTemplate }),
    ...(options.now && { now: options.now }),
  })
  for await (const row of readRows(files, maxSamples)) {
    notes.rows++
    await breathe(notes.rows, options)
    if (format === undefined) {
      format = chooseFormat(row, options.format, options.columns)
      columnWarnings = unusedColumnWarnings(row, format)
    }
    const pairsMasked = format.format === 'completion' ? !trainOnPrompt : trainOnCompletions
    encoder ??= new SampleEncoder(
      tokenizer, (tools) => (renderer ??= new ChatRenderer(template(tools))), { trainOnCompletions, trainOnPrompt, pairsMasked },
    )
    const example = readExample(row, format)
    if (blank(example)) {
      notes.empty.push(row)
      continue
    }
    const sample = fit(encoder.encode(example, row), row, options, notes)
    if (sample === undefined) continue
    if (sample.labelled > 0) samples.push(sample)
    else notes.masked.push(row)
  }
  options.onRows?.(notes.rows)
  const warnings = [...checkLabels(samples.length, notes, files), ...columnWarnings, ...notes.warnings(options.maxSeqLength)]
  if (tokenizer.eosId === undefined)
    warnings.push('The tokenizer has no EOS token: the model will not learn where an answer ends.')
  return { samples, format: format!, rows: notes.counts(), statistics: datasetStatistics(samples), warnings }
}

/** A data set in two. */
export interface SplitDataset {
  readonly train: Dataset
  readonly evaluation: Dataset
}

/** The samples of a data set that are held out for evaluation: a share below 1 (rounded up) or a number, chosen by the seed. */
export function splitDataset(dataset: Dataset, evaluation: number, seed: number): SplitDataset {
  const { samples } = dataset
  const count = evaluation < 1 ? Math.ceil(evaluation * samples.length) : evaluation
  if (count >= samples.length)
    throw new UnslothError('DATA', `The evaluation split takes ${count} of ${samples.length} samples; none are left.`, {
      hint: 'Make data.eval_split smaller, or give more data.',
    })
  const chosen = new Set(permutation(samples.length, seed, splitStream).subarray(0, count))
  const part = (evaluated: boolean): Dataset => {
    const kept = samples.filter((_, index) => chosen.has(index) === evaluated)
    return { ...dataset, samples: kept, statistics: datasetStatistics(kept) }
  }
  return { train: part(false), evaluation: part(true) }
}

/** Random stream of the split; epochs use their own numbers from 0. */
const splitStream = 0xffff_ffff
