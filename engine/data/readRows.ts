import { createReadStream } from 'node:fs'
import { pipeline, type Readable } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { UnslothError } from '#shared/errors.ts'
import { readError } from '../io/fileSystem.ts'
import { decodeUtf8, isJsonObject, parseJson } from '../io/jsonText.ts'
import { ArrayScanner, ScanFailure } from './arrayScanner.ts'

/** One row of a data set and where it stands. */
export interface Row {
  readonly value: Readonly<Record<string, unknown>>
  readonly file: string
  /** Counts from 1. */
  readonly line: number
}

/** Where a row stands, for messages. */
export const place = ({ file, line }: Pick<Row, 'file' | 'line'>): string => `${file}:${line}`

/** No single row is that long; a file without line ends would otherwise fill the memory. */
const rowLimit = 256 * 1024 * 1024

const dataError = (file: string, line: number, what: string, hint: string, cause?: unknown): UnslothError =>
  new UnslothError('DATA', `${place({ file, line })}: ${what}.`, { hint, cause })

const utf8Hint = 'Save the file as UTF-8.'

/** One row from its text. JSON.parse is fast; the careful parser takes what Python writes (NaN) and tells what is wrong. */
function parseRow(text: string, file: string, line: number): Row {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    try {
      value = parseJson(text, { file, duplicateKeys: 'last', python: true })
    } catch (error) {
      const found = /: line (\d+), column (\d+): (.*?)\.?$/s.exec((error as Error).message)
      const at = found === null ? '' : `, column ${found[2]}`
      throw dataError(file, line + (found === null ? 0 : Number(found[1]) - 1), `${found?.[3] ?? (error as Error).message}${at}`,
        'Each row is one JSON object. Correct or remove this one.', error)
    }
  }
  if (!isJsonObject(value)) {
    const kind = Array.isArray(value) ? 'a list' : value === null ? 'null' : `a ${typeof value}`
    throw dataError(file, line, `the row is ${kind}, not an object`, 'Each row is one JSON object such as {"text": "…"}.')
  }
  return { value, file, line }
}

/** The bytes of a file; `.gz` is unpacked. */
function openFile(file: string): Readable {
  const stream = createReadStream(file, { highWaterMark: 1 << 18 })
  return file.endsWith('.gz') ? pipeline(stream, createGunzip(), () => undefined) : stream
}

/** Byte chunks with errors as the user should see them; the file is closed however reading ends. */
async function* chunksOf(file: string): AsyncGenerator<Buffer> {
  const stream = openFile(file)
  try {
    for await (const chunk of stream) yield chunk as Buffer
  } catch (error) {
    const { code } = error as { code?: unknown }
    if (typeof code === 'string' && code.startsWith('Z_'))
      throw new UnslothError(
        'DATA', `${file}: not a gzip file, or a damaged one.`, { hint: 'Fetch or pack the file again.', cause: error },
      )
    throw readError(error, file, 'data set')
  } finally {
    stream.destroy()
  }
}

/** Puts back what was taken from an iterator to look at it. */
async function* chain(first: readonly Buffer[], rest: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  yield* first
  yield* rest
}

const byteOrderMark = Buffer.of(0xef, 0xbb, 0xbf)

/** Rows of one JSON object per line; blank lines count but hold no row. */
async function* readLines(file: string, chunks: AsyncIterable<Buffer>): AsyncGenerator<Row> {
  let line = 0
  let open: Buffer[] = []
  let openBytes = 0
  const finish = (last: Buffer): Row | undefined => {
    const bytes = open.length === 0 ? last : Buffer.concat([...open, last])
    open = []
    openBytes = 0
    line++
    const text = decodeUtf8(bytes)
    if (text === undefined) throw dataError(file, line, 'not UTF-8 text', utf8Hint)
    return text.trim() === '' ? undefined : parseRow(text, file, line)
  }
  for await (const chunk of chunks) {
    let from = 0
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      const row = finish(chunk.subarray(from, end))
      if (row !== undefined) yield row
      from = end + 1
    }
    open.push(chunk.subarray(from))
    openBytes += chunk.length - from
    if (openBytes > rowLimit) throw dataError(file, line + 1, 'the row is longer than 256 MiB', 'Write one JSON object per line.')
  }
  const row = finish(Buffer.alloc(0))
  if (row !== undefined) yield row
}

/** Rows of a JSON array, or of the one under `data`. */
async function* readArray(file: string, wrapped: boolean, chunks: AsyncIterable<Buffer>): AsyncGenerator<Row> {
  const scanner = new ArrayScanner(wrapped)
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let line = 1
  const decode = (bytes?: Buffer): string => {
    try {
      return bytes === undefined ? decoder.decode() : decoder.decode(bytes, { stream: true })
    } catch (error) {
      throw dataError(file, line, 'not UTF-8 text here or in the lines that follow', utf8Hint, error)
    }
  }
  try {
    for await (const chunk of chunks) {
      const text = decode(chunk)
      for (const element of scanner.push(text)) yield parseRow(element.text, file, element.line)
      for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) line++
    }
    decode()
    scanner.end()
  } catch (error) {
    if (!(error instanceof ScanFailure)) throw error
    const hint = 'A data set is JSONL, a JSON list of objects, or an object with such a list under "data".'
    throw dataError(file, error.line, error.message, hint, error)
  }
}

type Shape = 'lines' | 'list' | 'wrapped'

/**
 * Decides by the content: `[` begins a list; an object that is whole at the end of its line begins JSONL, unless it is all there
 * is and has its rows under `data`; an object that goes on over several lines of a .json file is such a wrapper, too.
 * `head` is the start of the file, `whole` tells that it is all of it.
 */
function shapeOf(file: string, head: string, whole: boolean): Shape {
  const text = head.trimStart()
  if (text.startsWith('[')) return 'list'
  if (!text.startsWith('{')) return 'lines'
  const end = text.indexOf('\n')
  const first = (end < 0 ? text : text.slice(0, end)).trimEnd()
  let value: unknown
  try {
    value = JSON.parse(first)
  } catch {
    const unfinished = end < 0 ? !whole : !first.endsWith('}')
    return unfinished && /\.json(\.gz)?$/i.test(file) ? 'wrapped' : 'lines'
  }
  const alone = whole && (end < 0 || text.slice(end).trim() === '')
  return alone && isJsonObject(value) && Array.isArray(value.data) ? 'wrapped' : 'lines'
}

/** Enough of a file to tell its shape: a second line has begun, or it is no object. */
const enoughToTell = (head: string): boolean =>
  /^\s*[^\s{]/.test(head) || /^\s*\{[^\n]*\n\s*\S/.test(head) || head.length > 1 << 22

async function* readFileRows(file: string): AsyncGenerator<Row> {
  const chunks = chunksOf(file)
  const head: Buffer[] = []
  let text = ''
  let whole = true
  for (;;) {
    const next = await chunks.next()
    if (next.done === true) break
    const chunk = head.length === 0 && next.value.subarray(0, 3).equals(byteOrderMark) ? next.value.subarray(3) : next.value
    head.push(chunk)
    text += chunk.toString('latin1')
    if (enoughToTell(text)) {
      whole = false
      break
    }
  }
  const shape = shapeOf(file, text, whole)
  const all = chain(head, chunks)
  yield* shape === 'lines' ? readLines(file, all) : readArray(file, shape === 'wrapped', all)
}

/**
 * The rows of JSONL and JSON files, in the order given and at most `limit`, read as a stream: what is not taken is not read.
 * A broken row is a DATA error naming file and line.
 */
export async function* readRows(files: readonly string[], limit = Infinity): AsyncGenerator<Row> {
  let left = limit
  if (left <= 0) return
  for (const file of files) {
    for await (const row of readFileRows(file)) {
      yield row
      if (--left <= 0) return
    }
  }
}
