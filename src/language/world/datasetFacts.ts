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

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === 'object' && value !== null && !Array.isArray(value)

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
      for (let at = 0; at < start.length && texts.length < rowLimit; at += 4096) texts.push(...scanner.push(start.slice(at, at + 4096)).map((element) => element.text))
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
    const { rows, lines } = rowsOfHead(head.toString('utf8'), whole)
    const columns = [...new Set(rows.slice(0, 50).flatMap((row) => Object.keys(row)))]
    const count = whole && packed && lines ? { rows: head.toString('utf8').split('\n').filter((line) => line.trim() !== '').length, exact: true }
      : lines && !packed ? await lineCount(handle, bytes)
      : whole && rows.length < rowLimit ? { rows: rows.length, exact: true }
      : { rows: Math.round((rows.length / Math.max(1, JSON.stringify(rows).length)) * head.length * (bytes / Math.max(1, raw.length))), exact: false }
    return { path, bytes, columns, ...formatOf(rows, path), ...count }
  } finally {
    await handle.close()
  }
}
