import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { chatTemplateFor } from './chatTemplate.ts'
import { cacheKey, cachePath } from './dataCache.ts'
import type { EncodedBatch } from './encodedBatch.ts'
import { encodeRows } from './encodeRows.ts'
import { extendConversations, extendedFormat } from './extendConversations.ts'
import {
  mapped,
  recogniseFormat,
  unusedColumnWarnings,
  type ColumnMapping,
  type DataFormat,
  type FormatChoice,
} from './formats.ts'
import { knownMarkers, type TurnMarkers } from './markers.ts'
import { permutation } from './random.ts'
import { countRows, fileKind, readSourceRows } from './readRows.ts'
import { parseRow, type Row, type SourceRow } from './row.ts'
import type { EncodePlan, TooLong } from './rowEncoder.ts'
import { RowNotes } from './rowNotes.ts'
import type { Sample } from './sample.ts'
import { openStoredSamples, pruneStoredSamples, SampleWriter } from './sampleStore.ts'
import { needsCount, rangeOf, type RowRange, type SplitChoice } from './splits.ts'
import { datasetStatistics, type DatasetStatistics, type RowCounts } from './statistics.ts'
import type { Tokenizer } from './tokenizer.ts'

export type { TooLong } from './rowEncoder.ts'

export interface DatasetOptions {
  /** Data files, read in this order. */
  readonly files: readonly string[]
  readonly maxSeqLength: number
  readonly format?: DataFormat | 'auto' | 'kto'
  readonly columns?: ColumnMapping
  /** Pattern that makes questions of several columns, see mergedPrompt.ts. */
  readonly mergedPrompt?: string
  /** A Jinja template, or the name of one; default: the model's own. */
  readonly chatTemplate?: string
  /** The time that a template may ask for: the start of the run. */
  readonly now?: Date
  /** Train the answers only, in text with known markers, Alpaca rows and conversations. `prompt`/`completion` always do so… */
  readonly trainOnCompletions?: boolean
  /** …unless their prompts are to be trained, too. */
  readonly trainOnPrompt?: boolean
  /** Only the last answer of each conversation. */
  readonly lastResponseOnly?: boolean
  /** Markers of questions and answers, instead of those that are found automatically. */
  readonly markers?: TurnMarkers
  readonly tooLong?: TooLong
  /** Rows that are joined to one conversation; default 1. */
  readonly conversationExtension?: number
  readonly seed?: number
  /** Ends reading when so much was made. */
  readonly enough?: (samples: number, tokens: number) => boolean
  /** Windows of `raw` text, in tokens. */
  readonly chunkSize?: number
  readonly stride?: number
  /** Leave out and count rows that cannot be read. */
  readonly skipBadRows?: boolean
  /** A slice of the rows. */
  readonly slice?: SplitChoice
  /** Rows (of the slice) that are passed over before any is taken. */
  readonly skipRows?: number
  /** Only the first so many rows (of the slice, after those passed over). */
  readonly maxSamples?: number
  /** Threads besides this one that make samples. Default 0: this one does it. */
  readonly threads?: number
  /** Folder of tokenised data that a second reading takes up again. */
  readonly cacheFolder?: string
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
  /** Whether it came ready from the cache. */
  readonly fromCache: boolean
}

/** Rows by which the format is recognised. */
const looked = 10

const stopped = (): UnslothError => new UnslothError('STOPPED', 'Stopped while the data set was read.')

async function rangeOfRows({ files, slice, skipRows = 0, maxSamples = Infinity }: DatasetOptions): Promise<RowRange> {
  if (slice === undefined) return { from: skipRows, to: skipRows + maxSamples }
  const { from, to } = rangeOf(slice, needsCount(slice) ? await countRows(files) : Infinity)
  return { from: from + skipRows, to: Math.min(to, from + skipRows + maxSamples) }
}

/** The first rows that can be read. Throws for the first that cannot, unless those are skipped. */
async function firstRows(files: readonly string[], range: RowRange, skip: boolean): Promise<Row[]> {
  const rows: Row[] = []
  let problem: unknown
  let seen = 0
  for await (const source of readSourceRows(files, range)) {
    try {
      rows.push(parseRow(source))
    } catch (error) {
      if (!skip && rows.length === 0) throw error
      problem ??= error
    }
    if (rows.length >= looked || (rows.length > 0 && ++seen >= looked) || ++seen >= 1000) break
  }
  if (rows.length === 0 && problem !== undefined) throw problem as Error
  return rows
}

function chooseFormat(rows: readonly Row[], options: DatasetOptions): FormatChoice {
  const { columns, mergedPrompt, files } = options
  // Running text is not one sample, unless that is asked for.
  const text = fileKind(files[0]!) === 'text' && (options.format ?? 'auto') === 'auto'
  const choice = recogniseFormat(rows, { asked: text ? 'raw' : options.format, columns, mergedPrompt })
  return text ? { ...choice, reason: 'it is running text, cut into windows' } : choice
}

function planOf(rows: readonly Row[], format: FormatChoice, options: DatasetOptions): EncodePlan {
  const { maxSeqLength, chunkSize = 2048, stride = 512, columns } = options
  const textColumn = format.columns.text ?? columns?.text ?? 'text'
  const texts = format.format === 'text' ? rows.map(({ value }) => value[textColumn]) : []
  const found = texts
    .map((text) => (typeof text === 'string' ? knownMarkers(text) : undefined))
    .find((markers) => markers !== undefined)
  // Room for the EOS that follows a window.
  const chunk = Math.max(1, Math.min(chunkSize, maxSeqLength - 1))
  return {
    format,
    maxSeqLength,
    tooLong: options.tooLong ?? 'truncate',
    trainOnCompletions: options.trainOnCompletions ?? false,
    trainOnPrompt: options.trainOnPrompt ?? false,
    lastResponseOnly: options.lastResponseOnly ?? false,
    markers: options.markers ?? found,
    chatTemplate: options.chatTemplate,
    now: options.now?.getTime(),
    chunkSize: chunk,
    stride: Math.min(stride, chunk - 1),
  }
}

/** Rows one by one, with the chance to stop and to tell how far it is. */
async function* watched(rows: AsyncIterable<SourceRow>, { signal }: DatasetOptions): AsyncGenerator<SourceRow> {
  for await (const row of rows) {
    if (signal?.aborted === true) throw stopped()
    yield row
  }
}

async function collect(
  batches: AsyncIterable<EncodedBatch>,
  writer: SampleWriter,
  notes: RowNotes,
  { onRows, signal, enough }: DatasetOptions,
): Promise<void> {
  for await (const batch of batches) {
    notes.add(batch)
    await writer.add(batch)
    onRows?.(notes.rows)
    if (enough?.(writer.samples, writer.tokens) === true) return
    if (signal?.aborted === true) throw stopped()
  }
}

/** Reads files, recognises their format, and makes the samples. Every failure names file and line. */
export async function buildDataset(options: DatasetOptions, tokenizer: Tokenizer): Promise<Dataset> {
  const { files, skipBadRows = false, threads = 0, cacheFolder } = options
  if (files.length === 0) throw new UnslothError('DATA', 'No data file is given.', { hint: 'Name one in data.local_dataset.' })
  const range = await rangeOfRows(options)
  const rows = await firstRows(files, range, skipBadRows)
  if (rows.length === 0)
    throw new UnslothError('DATA', `${files.join(', ')}: the data set is empty.`, { hint: 'Give at least one row.' })
  const { conversationExtension: turns = 1, seed = 3407 } = options
  const own = chooseFormat(rows, options)
  const format = turns > 1 ? extendedFormat(own, turns) : own
  const plan = planOf(rows, format, options)
  // Not all of the data is no use to another run.
  const path =
    cacheFolder === undefined || options.enough !== undefined
      ? undefined
      : cachePath(
          cacheFolder,
          await cacheKey({ files, range, skipBadRows, plan, tokenizer, extension: turns > 1 ? [turns, seed, own] : [] }),
        )
  const warnings = (notes: RowNotes, samples: number): string[] => [
    ...notes.check(samples, files),
    ...unusedColumnWarnings(rows[0]!, own),
    ...notes.warnings(options.maxSeqLength),
    ...planWarnings(options, plan),
    ...toolWarnings(rows, own, tokenizer, plan),
    ...(tokenizer.eosId === undefined ? ['The tokenizer has no EOS token: the model will not learn where an answer ends.'] : []),
  ]
  const finished = (samples: readonly Sample[], notes: RowNotes, fromCache: boolean): Dataset => ({
    samples,
    format,
    rows: notes.counts(),
    statistics: datasetStatistics(samples),
    warnings: warnings(notes, samples.length),
    fromCache,
  })
  const stored = path === undefined ? undefined : await openStoredSamples(path)
  if (stored !== undefined) return finished(stored.samples, RowNotes.from(stored.header.notes), true)
  const notes = new RowNotes(skipBadRows)
  const writer = await SampleWriter.open(path)
  try {
    const source = watched(readSourceRows(files, range), options)
    const extended = turns > 1 ? extendConversations(source, own, turns, seed) : source
    await collect(encodeRows(extended, tokenizer, plan, threads), writer, notes, options)
    const samples = await writer.finish({ notes: notes.plain() })
    if (cacheFolder !== undefined) await pruneStoredSamples(cacheFolder)
    return finished(samples, notes, false)
  } catch (error) {
    await writer.discard()
    throw error
  }
}

/** Tools that the data have and the template does not show. */
function toolWarnings(rows: readonly Row[], format: FormatChoice, tokenizer: Tokenizer, { chatTemplate }: EncodePlan): string[] {
  const column = mapped(format.columns, 'tools')
  const has = rows.some(
    ({ value }) => value[column] !== undefined && value[column] !== null && value[column] !== '' && value[column] !== '[]',
  )
  if (!has || !['chatml', 'sharegpt'].includes(format.format)) return []
  try {
    const { source, name } = chatTemplateFor(tokenizer, {
      tools: true,
      ...(chatTemplate !== undefined && { template: chatTemplate }),
    })
    return /\btools\b/.test(source)
      ? []
      : [`The data have tools (the column ${JSON.stringify(column)}), and ${name} does not show them to the model.`]
  } catch {
    return []
  }
}

function planWarnings({ chunkSize, stride }: DatasetOptions, plan: EncodePlan): string[] {
  if (plan.format.format !== 'raw') return []
  const shorter = chunkSize !== undefined && chunkSize > plan.chunkSize + 1
  return [
    ...(shorter
      ? [
          `data.chunk_size (${chunkSize}) is more than max_seq_length; the windows are ${formatCount(plan.chunkSize)} tokens and an EOS.`,
        ]
      : []),
    ...(stride !== undefined && stride > plan.stride
      ? [`data.stride (${stride}) is not below the size of a window; ${plan.stride} is used.`]
      : []),
  ]
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
