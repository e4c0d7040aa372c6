import type { RowEncoder, RowNote, RowOutcome } from './rowEncoder.ts'
import type { SourceRow } from './row.ts'
import type { TokenSpan } from './completionSpans.ts'

/** A row that is not simply samples. */
export interface BatchRemark {
  readonly file: string
  readonly line: number
  readonly note?: RowNote
  readonly problem?: NonNullable<RowOutcome['problem']>
}

/** Samples of some rows in few buffers, so that they go to another thread, and to disk, without being copied piece by piece. */
export interface EncodedBatch {
  readonly rows: number
  readonly files: readonly string[]
  /** Tokens of all samples, one after another. */
  readonly ids: Int32Array
  /** For each sample: tokens, spans, number of its file in `files`, line. */
  readonly table: Int32Array
  /** From and to of each span, counted in its sample. */
  readonly spans: Int32Array
  readonly remarks: readonly BatchRemark[]
}

/** Numbers of a sample in `table`. */
export const tableWidth = 4

/** Encodes rows in their order. */
export function encodeBatch(encoder: RowEncoder, rows: readonly SourceRow[]): EncodedBatch {
  const files: string[] = []
  const table: number[] = []
  const spans: number[] = []
  const parts: Int32Array[] = []
  const remarks: BatchRemark[] = []
  let tokens = 0
  for (const row of rows) {
    const { samples, note, problem } = encoder.encode(row)
    const { file, line } = row
    if (note !== undefined || problem !== undefined)
      remarks.push({ file, line, ...(note && { note }), ...(problem && { problem }) })
    for (const { ids, spans: trained } of samples) {
      if (files.at(-1) !== file) files.push(file)
      table.push(ids.length, trained.length, files.length - 1, line)
      for (const { from, to } of trained) spans.push(from, to)
      parts.push(ids)
      tokens += ids.length
    }
  }
  const ids = new Int32Array(tokens)
  let at = 0
  for (const part of parts) {
    ids.set(part, at)
    at += part.length
  }
  return { rows: rows.length, files, ids, table: Int32Array.from(table), spans: Int32Array.from(spans), remarks }
}

/** The spans of one sample. */
export const spansAt = (spans: Int32Array, first: number, count: number): TokenSpan[] =>
  Array.from({ length: count }, (_, index) => ({ from: spans[first + 2 * index]!, to: spans[first + 2 * index + 1]! }))
