import { open, stat, type FileHandle } from 'node:fs/promises'
import { constants, gunzipSync } from 'node:zlib'
import { chooseFormat, type DataFormat } from '../../../engine/data/formats.ts'
import { ArrayScanner } from '../../../engine/data/arrayScanner.ts'
import { UnslothError } from '#shared/errors.ts'
import type { DatasetFacts } from '../workspace.ts'

/** Bytes looked at from the beginning, and at each place further on; whole files are counted up to `countLimit`. */
const headBytes = 1 << 20
const probeBytes = 1 << 18
const countLimit = 32 * 2 ** 20
const rowLimit = 200

type Rows = readonly Readonly<Record<string, unknown>>[]

async function read(handle: FileHandle, position: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, position)
  return buffer.subarray(0, bytesRead)
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function parsed(texts: readonly string[]): Rows {
  return texts.flatMap((text) => {
    try {
      const value: unknown = JSON.parse(text)
      return isObject(value) ? [value] : []
    } catch {
      return []
    }
  })
}

/** Complete rows in the beginning of a file. `whole`: the beginning is all of it. */
export function rowsOfHead(head: string, whole: boolean): { readonly rows: Rows; readonly lines: boolean } {
  const text = head.replace(/^\ufeff/, '')
  const start = text.trimStart()
  const list = start.startsWith('[')
  if (list || /^\{\s*"data"\s*:\s*\[/.test(start)) {
    const texts: string[] = []
    try {
      const scanner = new ArrayScanner(!list)
      for (let at = 0; at < start.length && texts.length < rowLimit; at += 4096)
        texts.push(...scanner.push(start.slice(at, at + 4096)).map((element) => element.text))
    } catch {
      // What was cut out before the damage still tells the columns.
    }
    return { rows: parsed(texts.slice(0, rowLimit)), lines: false }
  }
  const lines = text.split(/\r?\n/)
  if (!whole) lines.pop()
  return { rows: parsed(lines.filter((line) => line.trim() !== '').slice(0, rowLimit)), lines: true }
}

function formatOf(rows: Rows, path: string): { format: DataFormat | undefined; problem: string | undefined } {
  const [first] = rows
  if (first === undefined) return { format: undefined, problem: 'no row could be read from its beginning' }
  try {
    return { format: chooseFormat({ value: first, file: path, line: 1 }).format, problem: undefined }
  } catch (error) {
    return { format: undefined, problem: UnslothError.is(error) ? error.message.replace(`${path}:1: `, '') : String(error) }
  }
}

const countLines = (bytes: Buffer): number => {
  let count = 0
  for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) count++
  return count
}

/** Rows of a file with one row per line: counted when it is small, else judged by pieces of it. */
async function lineCount(handle: FileHandle, bytes: number): Promise<{ rows: number; exact: boolean }> {
  if (bytes <= countLimit) {
    let rows = 0
    let last = 10
    for (let at = 0; at < bytes; at += headBytes) {
      const piece = await read(handle, at, Math.min(headBytes, bytes - at))
      if (piece.length === 0) break
      rows += countLines(piece)
      last = piece[piece.length - 1]!
    }
    return { rows: rows + (last === 10 ? 0 : 1), exact: true }
  }
  let seen = 0
  let lines = 0
  for (let part = 0; part < 16; part++) {
    const piece = await read(handle, Math.floor((part / 16) * (bytes - probeBytes)), probeBytes)
    seen += piece.length
    lines += countLines(piece)
  }
  return { rows: Math.round(lines * (bytes / Math.max(1, seen))), exact: false }
}

/** Cells of one line of comma- or tab-separated text; a quoted cell may hold the separator, not a line break. */
function cells(line: string, separator: string): string[] {
  const found: string[] = []
  for (let at = 0; at <= line.length;) {
    let text = ''
    if (line[at] === '"') {
      for (at++; at < line.length; at++) {
        if (line[at] !== '"') text += line[at]
        else if (line[at + 1] === '"') text += line[at++]
        else break
      }
      at = line.indexOf(separator, at)
    } else {
      const end = line.indexOf(separator, at)
      text = line.slice(at, end < 0 ? line.length : end)
      at = end
    }
    found.push(text)
    if (at < 0) break
    at++
  }
  return found
}

/** Rows of the beginning of a table, by its first line. */
function rowsOfTable(head: string, separator: string): Rows {
  const lines = head.replace(/^\ufeff/, '').split(/\r?\n/)
  const names = cells(lines[0] ?? '', separator).map((name) => name.trim())
  if (names.join('') === '') return []
  return lines
    .slice(1, rowLimit)
    .filter((line) => line !== '')
    .map((line) => {
      const values = cells(line, separator)
      return Object.fromEntries(names.map((name, index) => [name, values[index] ?? '']))
    })
}

/** Columns, format and rows of a data file, from its beginning and a few pieces: the size of the file does not matter. */
export async function datasetFacts(path: string): Promise<DatasetFacts> {
  const { size: bytes } = await stat(path)
  const handle = await open(path, 'r')
  try {
    const raw = await read(handle, 0, Math.min(bytes, headBytes))
    const packed = raw[0] === 0x1f && raw[1] === 0x8b
    // A packed beginning unpacks as far as it goes.
    const head = packed ? gunzipSync(raw, { finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength: 64 * headBytes }) : raw
    const whole = bytes <= headBytes
    // Columnar and free text: only the engine reads those.
    if (/\.(?:parquet|arrow|txt|md)(?:\.gz)?$/i.test(path))
      return { path, bytes, columns: [], format: undefined, problem: undefined, rows: 0, exact: false }
    const table = /\.([ct])sv(?:\.gz)?$/i.exec(path)?.[1]
    const { rows, lines } =
      table === undefined
        ? rowsOfHead(head.toString('utf8'), whole)
        : { rows: rowsOfTable(head.toString('utf8'), /t/i.test(table) ? '\t' : ','), lines: true }
    const columns = [...new Set(rows.slice(0, 50).flatMap((row) => Object.keys(row)))]
    const count =
      whole && packed && lines
        ? {
            rows: head
              .toString('utf8')
              .split('\n')
              .filter((line) => line.trim() !== '').length,
            exact: true,
          }
        : lines && !packed
          ? await lineCount(handle, bytes)
          : whole && rows.length < rowLimit
            ? { rows: rows.length, exact: true }
            : {
                rows: Math.round(
                  (rows.length / Math.max(1, JSON.stringify(rows).length)) * head.length * (bytes / Math.max(1, raw.length)),
                ),
                exact: false,
              }
    // The first line of a table is no row.
    const total = table === undefined ? count : { ...count, rows: Math.max(0, count.rows - 1) }
    return { path, bytes, columns, ...formatOf(rows, path), ...total }
  } finally {
    await handle.close()
  }
}
