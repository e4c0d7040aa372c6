import { stat } from 'node:fs/promises'
import { readError } from '../io/fileSystem.ts'
import { chunksOf } from './fileChunks.ts'

/** Where a row of a file of lines begins. */
export interface RowPlace {
  /** Rows before it. */
  readonly row: number
  /** Lines before it, with those that hold no row. */
  readonly line: number
  readonly offset: number
}

/** Rows between two places that are remembered. */
const every = 4096
/** Files whose places are remembered. */
const files = 32

interface Index {
  readonly stamp: string
  /** In the order of the file. */
  readonly places: RowPlace[]
  /** Behind the last row, once it was reached. */
  end?: RowPlace
}

const indexes = new Map<string, Index>()
const lineFeed = 10

async function indexOf(file: string): Promise<Index> {
  const { size, mtimeMs } = await stat(file).catch((error: unknown) => {
    throw readError(error, file, 'data set')
  })
  const stamp = `${size}:${mtimeMs}`
  const known = indexes.get(file)
  const index = known?.stamp === stamp ? known : { stamp, places: [{ row: 0, line: 0, offset: 0 }] }
  indexes.delete(file)
  indexes.set(file, index)
  for (const name of indexes.keys()) if (indexes.size > files) indexes.delete(name)
  return index
}

/** The last place at or before a row. */
function nearest({ places }: Index, row: number): RowPlace {
  let [low, high] = [0, places.length - 1]
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (places[middle]!.row <= row) low = middle
    else high = middle - 1
  }
  return places[low]!
}

const isBlank = (bytes: Buffer): boolean => bytes.every((byte) => byte === 0x20 || (byte >= 9 && byte <= 13))

/**
 * Where the row of this number begins in a file of one row per line, or what is behind its last row when it has fewer. Only line
 * ends are looked for, and places on the way are remembered: any part of a large file is found soon, and the second time at once.
 */
export async function placeOfRow(file: string, wanted: number, signal?: AbortSignal): Promise<RowPlace> {
  const index = await indexOf(file)
  if (index.end !== undefined && wanted >= index.end.row) return index.end
  let { row, line, offset } = nearest(index, wanted)
  // The beginning of a line that goes on in the next chunk; only its emptiness matters.
  let [open, openIsBlank] = [0, true]
  const endLine = (bytes: number, blank: boolean): boolean => {
    offset += bytes
    line++
    if (!blank && ++row % every === 0 && row > index.places.at(-1)!.row) index.places.push({ row, line, offset })
    return row === wanted && !blank
  }
  if (row === wanted) return { row, line, offset }
  for await (const chunk of chunksOf(file, offset)) {
    signal?.throwIfAborted()
    let from = 0
    for (let end = chunk.indexOf(lineFeed); end >= 0; end = chunk.indexOf(lineFeed, from)) {
      const blank = openIsBlank && (chunk[from]! > 0x20 ? false : isBlank(chunk.subarray(from, end)))
      if (endLine(open + end + 1 - from, blank)) return { row, line, offset }
      from = end + 1
      ;[open, openIsBlank] = [0, true]
    }
    openIsBlank &&= isBlank(chunk.subarray(from))
    open += chunk.length - from
  }
  if (open > 0 && !openIsBlank) endLine(open, false)
  index.end = { row, line, offset }
  return index.end
}
