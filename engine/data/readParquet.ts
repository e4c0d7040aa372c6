import { open, type FileHandle } from 'node:fs/promises'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import { decompress as decompressZstandard } from 'fzstd'
import {
  parquetMetadataAsync,
  parquetReadObjects,
  snappyUncompress,
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
} from 'hyparquet'
import { UnslothError } from '#shared/errors.ts'
import { readError } from '../io/fileSystem.ts'
import { isJsonObject } from '../io/jsonText.ts'
import type { Row, SourceRow } from './row.ts'

/** A page may unpack to this much more than it is; what is smaller than `pageAlways` may do as it likes. */
const pageRatio = 2000
const pageAlways = 16 * 2 ** 20
const pageLimit = 2 ** 30
/** Bytes of a row group, unpacked, that are decoded at once. */
const decodedAtOnce = 128 * 2 ** 20

class ParquetBomb extends Error {}

type Unpack = (input: Uint8Array, size: number) => Uint8Array

/** Refuses a page whose header promises far more than its bytes can hold in good faith. */
const guarded =
  (unpack: Unpack): Unpack =>
  (input, size) => {
    if (size > pageLimit || size > Math.max(pageAlways, pageRatio * input.length))
      throw new ParquetBomb(`a page of ${input.length} bytes unpacks to ${size}`)
    return unpack(input, size)
  }

/** Bytes of LZ4 blocks without a frame. */
function unpackLz4(input: Uint8Array, size: number): Uint8Array {
  const output = new Uint8Array(size)
  let [from, to] = [0, 0]
  const longer = (length: number): number => {
    if (length < 15) return length
    for (let byte = 255; byte === 255;) length += byte = input[from++] ?? 0
    return length
  }
  while (from < input.length) {
    const token = input[from++]!
    const literals = longer(token >> 4)
    output.set(input.subarray(from, from + literals), to)
    from += literals
    to += literals
    if (from >= input.length) break
    const distance = input[from]! | (input[from + 1]! << 8)
    from += 2
    const length = longer(token & 15) + 4
    if (distance === 0 || distance > to || to + length > size) throw new Error('damaged LZ4 block')
    for (let count = 0; count < length; count++, to++) output[to] = output[to - distance]!
  }
  return output
}

const compressors: Compressors = {
  SNAPPY: guarded((input, size) => {
    const output = new Uint8Array(size)
    snappyUncompress(input, output)
    return output
  }),
  GZIP: guarded((input, size) => gunzipSync(input, { maxOutputLength: size + 1 })),
  BROTLI: guarded((input, size) => brotliDecompressSync(input, { maxOutputLength: size + 1 })),
  ZSTD: guarded((input, size) => decompressZstandard(input, new Uint8Array(size))),
  LZ4_RAW: guarded(unpackLz4),
}

async function asBuffer(handle: FileHandle): Promise<AsyncBuffer> {
  const { size } = await handle.stat()
  return {
    byteLength: size,
    async slice(start, end = size) {
      const bytes = Buffer.alloc(Math.max(0, Math.min(end, size) - start))
      const { bytesRead } = await handle.read(bytes, 0, bytes.length, start)
      return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytesRead)
    },
  }
}

/** Values as JSON has them: whole numbers as numbers where they fit, bytes as text, times in ISO 8601. */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint')
    return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value.toString()
  if (value instanceof Date) return value.toISOString()
  if (value instanceof Uint8Array) return new TextDecoder().decode(value)
  if (Array.isArray(value)) return value.map(plain)
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plain)
  if (isJsonObject(value)) return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]))
  return value
}

function damaged(file: string, error: unknown): UnslothError {
  if (error instanceof ParquetBomb)
    return new UnslothError('DATA', `${file}: ${error.message}; reading it was stopped.`, {
      hint: 'Such a file can fill the memory. Write it again with the program that made it.',
      cause: error,
    })
  const { code } = error as { code?: unknown }
  if (typeof code === 'string' && /^E[A-Z]+$/.test(code)) return readError(error, file, 'data set')
  return new UnslothError('DATA', `${file}: not a Parquet file, or a damaged one: ${(error as Error).message}.`, {
    hint: 'Fetch or write the file again.',
    cause: error,
  })
}

/** First and last row (exclusive) of the parts to decode one after another: row groups, large ones in parts. */
function partsOf({ row_groups: groups }: FileMetaData): { from: number; to: number }[] {
  let first = 0
  return groups.flatMap(({ num_rows: rows, total_byte_size: bytes }) => {
    const [count, start] = [Number(rows), first]
    first += count
    const parts = Math.max(1, Math.min(count, Math.ceil(Number(bytes) / decodedAtOnce)))
    const size = Math.ceil(count / parts)
    return Array.from({ length: count === 0 ? 0 : Math.ceil(count / size) }, (_, part) => ({
      from: start + part * size,
      to: start + Math.min(count, (part + 1) * size),
    }))
  })
}

/** Rows of a Parquet file; `line` is the number of the row. */
export async function* readParquet(file: string): AsyncGenerator<SourceRow> {
  const handle = await open(file).catch((error: unknown) => {
    throw readError(error, file, 'data set')
  })
  try {
    const buffer = await asBuffer(handle)
    const metadata = await parquetMetadataAsync(buffer).catch((error: unknown) => {
      throw damaged(file, error)
    })
    for (const { from, to } of partsOf(metadata)) {
      const rows = await parquetReadObjects({ file: buffer, metadata, rowStart: from, rowEnd: to, compressors }).catch(
        (error: unknown) => {
          throw damaged(file, error)
        },
      )
      for (const [index, row] of rows.entries()) yield { file, line: from + index + 1, value: plain(row) as Row['value'] }
    }
  } finally {
    await handle.close()
  }
}

/** Rows of a Parquet file by its own account. */
export async function parquetRowCount(file: string): Promise<number> {
  const handle = await open(file).catch((error: unknown) => {
    throw readError(error, file, 'data set')
  })
  try {
    return Number((await parquetMetadataAsync(await asBuffer(handle))).num_rows)
  } catch (error) {
    throw damaged(file, error)
  } finally {
    await handle.close()
  }
}
