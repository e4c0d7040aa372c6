import { UnslothError } from '#shared/errors.ts'
import { parquetRowCount, readParquet } from './readParquet.ts'
import { readDelimited } from './readDelimited.ts'
import { isOfLines, readJsonRows, readJsonRowsFrom } from './readJsonRows.ts'
import { placeOfRow } from './rowIndex.ts'
import { readText } from './readText.ts'
import { parseRow, type Row, type SourceRow } from './row.ts'
import type { RowRange } from './splits.ts'

export { place, type Row } from './row.ts'

/** What a file holds, by its name. */
export type FileKind = 'json' | 'delimited' | 'text' | 'parquet'

/** The kind of a data file; what is not known by name is read as JSONL. */
export function fileKind(file: string): FileKind {
  const name = file.toLowerCase().replace(/\.gz$/, '')
  if (/\.(?:csv|tsv)$/.test(name)) return 'delimited'
  if (/\.(?:txt|text|md|markdown)$/.test(name)) return 'text'
  return /\.(?:parquet|pq)$/.test(name) ? 'parquet' : 'json'
}

function readFileRows(file: string): AsyncGenerator<SourceRow> {
  switch (fileKind(file)) {
    case 'delimited':
      return readDelimited(file)
    case 'text':
      return readText(file)
    case 'parquet':
      if (/\.gz$/i.test(file))
        throw new UnslothError('DATA', `${file}: a packed Parquet file; Parquet packs its own pages.`, {
          hint: 'Unpack it with gunzip.',
        })
      return readParquet(file)
    case 'json':
      return readJsonRows(file)
  }
}

/** Rows as they stand in the files, in the order given, read as a stream: what is not taken is not read. */
export async function* readSourceRows(
  files: readonly string[],
  { from, to }: RowRange = { from: 0, to: Infinity },
): AsyncGenerator<SourceRow> {
  let at = 0
  if (to <= from) return
  for (const file of files) {
    let rows = readFileRows(file)
    if (at < from && fileKind(file) === 'json' && (await isOfLines(file))) {
      const place = await placeOfRow(file, from - at)
      at += place.row
      if (at < from) continue
      rows = readJsonRowsFrom(file, place)
    }
    for await (const row of rows) {
      if (at >= from) yield row
      if (++at >= to) return
    }
  }
}

/** The rows of files, parsed, at most `limit`. A broken row is a DATA error naming file and line. */
export async function* readRows(files: readonly string[], limit = Infinity): AsyncGenerator<Row> {
  for await (const row of readSourceRows(files, { from: 0, to: limit })) yield parseRow(row)
}

/** How many rows the files hold. */
export async function countRows(files: readonly string[]): Promise<number> {
  let rows = 0
  for (const file of files) {
    if (fileKind(file) === 'parquet') rows += await parquetRowCount(file)
    else if (fileKind(file) === 'json' && (await isOfLines(file))) rows += (await placeOfRow(file, Infinity)).row
    else {
      const reading = readFileRows(file)
      while ((await reading.next()).done !== true) rows++
    }
  }
  return rows
}
