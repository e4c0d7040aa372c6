import { decodeUtf8, isJsonObject } from '../io/jsonText.ts'
import { ArrayScanner, ScanFailure } from './arrayScanner.ts'
import { chunksOf } from './fileChunks.ts'
import type { RowPlace } from './rowIndex.ts'
import { dataError, rowLimit, utf8Hint, type SourceRow } from './row.ts'

/** Puts back what was taken from an iterator to look at it. */
async function* chain(first: readonly Buffer[], rest: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  yield* first
  yield* rest
}

const byteOrderMark = Buffer.of(0xef, 0xbb, 0xbf)
const blankLine = /^\s*$/

/** Rows of one JSON object per line; blank lines count but hold no row. */
async function* readLines(file: string, chunks: AsyncIterable<Buffer>, before = 0): AsyncGenerator<SourceRow> {
  let line = before
  let open: Buffer[] = []
  let openBytes = 0
  const finish = (last: Buffer): SourceRow | undefined => {
    const bytes = open.length === 0 ? last : Buffer.concat([...open, last])
    open = []
    openBytes = 0
    line++
    const text = decodeUtf8(bytes)
    if (text === undefined) return { file, line, problem: { message: 'not UTF-8 text', hint: utf8Hint } }
    return blankLine.test(text) ? undefined : { file, line, text }
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
async function* readArray(file: string, wrapped: boolean, chunks: AsyncIterable<Buffer>): AsyncGenerator<SourceRow> {
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
      for (const element of scanner.push(text)) yield { file, line: element.line, text: element.text }
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

/** The beginning of a file, as much of it as tells its shape, and the rest. */
async function begin(
  file: string,
): Promise<{ readonly shape: Shape; readonly head: readonly Buffer[]; readonly rest: AsyncGenerator<Buffer> }> {
  const rest = chunksOf(file)
  const head: Buffer[] = []
  let text = ''
  let whole = true
  for (;;) {
    const next = await rest.next()
    if (next.done === true) break
    const chunk = head.length === 0 && next.value.subarray(0, 3).equals(byteOrderMark) ? next.value.subarray(3) : next.value
    head.push(chunk)
    text += chunk.toString('latin1')
    if (enoughToTell(text)) {
      whole = false
      break
    }
  }
  return { shape: shapeOf(file, text, whole), head, rest }
}

/** Whether each line of a file is a row, so that any of them can be read without those before it. */
export async function isOfLines(file: string): Promise<boolean> {
  if (/\.gz$/i.test(file)) return false
  const { shape, rest } = await begin(file)
  await rest.return(undefined)
  return shape === 'lines'
}

/** Rows of a JSONL or JSON file, told apart by their content. */
export async function* readJsonRows(file: string): AsyncGenerator<SourceRow> {
  const { shape, head, rest } = await begin(file)
  const all = chain(head, rest)
  yield* shape === 'lines' ? readLines(file, all) : readArray(file, shape === 'wrapped', all)
}

/** Rows of a JSONL file from a place on. */
export const readJsonRowsFrom = (file: string, { line, offset }: RowPlace): AsyncGenerator<SourceRow> =>
  offset === 0 ? readJsonRows(file) : readLines(file, chunksOf(file, offset), line)
