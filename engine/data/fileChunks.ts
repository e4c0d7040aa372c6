import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { createGunzip } from 'node:zlib'
import { pipeline } from 'node:stream'
import { UnslothError } from '#shared/errors.ts'
import { readError } from '../io/fileSystem.ts'

/** A packed file may become this much larger than it is… */
const packedRatio = 200
/** …or this large, whatever its size. Text that is no attack packs about 4:1, repetitive logs 50:1. */
const unpackedAlways = 256 * 2 ** 20

const bomb = (file: string, packed: number): UnslothError =>
  new UnslothError(
    'DATA',
    `${file}: its ${packed} bytes unpack to more than ${packedRatio} times as much; reading it was stopped.`,
    {
      hint: 'Such a file can fill every disk and memory. When it is what you want to train on, unpack it yourself and name the result.',
    },
  )

/** Byte chunks of a file, `.gz` unpacked, with errors as the user should see them; the file is closed however reading ends. */
export async function* chunksOf(file: string, from = 0): AsyncGenerator<Buffer> {
  const packed = /\.gz$/i.test(file)
  const size = packed
    ? (
        await stat(file).catch((error: unknown) => {
          throw readError(error, file, 'data set')
        })
      ).size
    : 0
  const source = createReadStream(file, { highWaterMark: 1 << 18, start: from })
  const stream = packed ? pipeline(source, createGunzip({ chunkSize: 1 << 18 }), () => undefined) : source
  let unpacked = 0
  try {
    for await (const chunk of stream) {
      unpacked += (chunk as Buffer).length
      if (packed && unpacked > Math.max(unpackedAlways, packedRatio * size)) throw bomb(file, size)
      yield chunk as Buffer
    }
  } catch (error) {
    const { code } = error as { code?: unknown }
    if (typeof code === 'string' && code.startsWith('Z_'))
      throw new UnslothError('DATA', `${file}: not a gzip file, or a damaged one.`, {
        hint: 'Fetch or pack the file again.',
        cause: error,
      })
    throw readError(error, file, 'data set')
  } finally {
    stream.destroy()
    source.destroy()
  }
}

/** Pieces of text from bytes; `refuse` makes the error for bytes that are no UTF-8. A byte order mark is left out. */
export async function* textOf(chunks: AsyncIterable<Buffer>, refuse: (error: unknown) => UnslothError): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  const decode = (bytes?: Buffer): string => {
    try {
      return bytes === undefined ? decoder.decode() : decoder.decode(bytes, { stream: true })
    } catch (error) {
      throw refuse(error)
    }
  }
  for await (const chunk of chunks) yield decode(chunk)
  const rest = decode()
  if (rest !== '') yield rest
}
