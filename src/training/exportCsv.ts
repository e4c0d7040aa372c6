import { open, rename, rm } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { UnslothError } from '#shared/errors.ts'
import type { RunSeries, SeriesTable } from './runSeries.ts'

export interface CsvRun {
  readonly name: string
  readonly series: RunSeries
}

/** Rows of one piece of the text. */
const rowsPerChunk = 4_096

/**
 * All metrics of runs as CSV at full resolution, in pieces: one row for a step, with the evaluation of that step in the
 * same row. Empty where a record has no such value; a loss that was not a number is `NaN`.
 */
export function* csvChunks(runs: readonly CsvRun[]): Generator<string> {
  const keys = [
    'step',
    ...new Set(runs.flatMap(({ series }) => [...series.steps.keys, ...series.evals.keys]).filter((key) => key !== 'step')),
  ]
  const named = runs.length > 1
  yield `${(named ? ['run', ...keys] : keys).map(quote).join()}\n`
  for (const { name, series } of runs) {
    const prefix = named ? `${quote(name)},` : ''
    let chunk = ''
    let rows = 0
    for (const [stepRow, evalRow] of joinedRows(series)) {
      const cells = keys.map((key) => cell(series, key, stepRow, evalRow))
      chunk += `${prefix}${cells.join()}\n`
      if (++rows % rowsPerChunk === 0) {
        yield chunk
        chunk = ''
      }
    }
    if (chunk !== '') yield chunk
  }
}

/** Row numbers of the step and of the evaluation with the same step; −1 where there is none. */
function* joinedRows({ steps, evals }: RunSeries): Generator<[number, number]> {
  let s = 0
  let e = 0
  while (s < steps.length || e < evals.length) {
    const step = s < steps.length ? steps.column('step')![s]! : Infinity
    const evaluated = e < evals.length ? evals.column('step')![e]! : Infinity
    if (step === evaluated) yield [s++, e++]
    else if (step < evaluated) yield [s++, -1]
    else yield [-1, e++]
  }
}

function cell({ steps, evals }: RunSeries, key: string, stepRow: number, evalRow: number): string {
  const inSteps = valueAt(steps, key, stepRow)
  const value = Number.isNaN(inSteps) ? valueAt(evals, key, evalRow) : inSteps
  if (!Number.isNaN(value)) return String(value)
  const isLoss = (key === 'loss' && stepRow >= 0) || (key === 'eval_loss' && evalRow >= 0)
  return isLoss ? 'NaN' : ''
}

const valueAt = (table: SeriesTable, key: string, row: number): number => (row < 0 ? NaN : (table.column(key)?.[row] ?? NaN))

/** A field as RFC 4180 wants it. A leading sign that spreadsheets would take for a formula is defused. */
function quote(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}

/** Writes a text in pieces: the file appears complete, or not at all. */
export async function writeChunks(path: string, chunks: Iterable<string>): Promise<void> {
  const partial = `${path}.partial-${process.pid}-${randomBytes(4).toString('hex')}`
  try {
    const file = await open(partial, 'wx')
    try {
      for (const chunk of chunks) await file.write(chunk)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(partial, path)
  } catch (error) {
    await rm(partial, { force: true })
    throw new UnslothError('FILE_WRITE', `${path}: cannot be written: ${(error as Error).message}`, {
      hint: 'Choose a folder that you may write to, on a disk with room.',
      cause: error,
    })
  }
}
