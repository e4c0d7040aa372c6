import { open, stat, type FileHandle } from 'node:fs/promises'
import { basename } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { decodeUtf8, isJsonObject, parseJson } from './jsonText.ts'
import { readError } from './fileSystem.ts'
import { quote } from './printable.ts'

/**
 * The safetensors container: u64 LE header length N, N bytes of JSON, then the data of all tensors without gaps.
 * Everything here treats the file as hostile: only the header is read, never more than the file holds, and every
 * inconsistency is a FILE_FORMAT error that names the file and the tensor.
 */

/** Bits per element; the order is the reference writer's: tensors of later types come first in a file. */
const dtypeBits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const
export type SafetensorsDtype = keyof typeof dtypeBits
export const safetensorsDtypes = Object.keys(dtypeBits) as readonly SafetensorsDtype[]
const ranks = new Map(safetensorsDtypes.map((dtype, index) => [dtype, index]))

/** Place of a type in the reference writer's order (higher first in the file). */
export const dtypeRank = (dtype: SafetensorsDtype): number => ranks.get(dtype)!

/** The reference reader's limit, which bounds what a hostile length can make us allocate. */
export const maxHeaderBytes = 100_000_000

export interface TensorEntry {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  /** Absolute offsets in the file: [begin, end). */
  readonly begin: number
  readonly end: number
}

export interface SafetensorsHeader {
  /** By position in the file. */
  readonly tensors: readonly TensorEntry[]
  readonly metadata: ReadonlyMap<string, string>
  /** Where the data begins: 8 + N. */
  readonly dataBegin: number
  readonly fileBytes: number
}

const fetchAgain = 'The file is damaged, most likely by an interrupted download or copy: fetch it again.'
const notWritten = 'The file was not written by a safetensors library, or it is damaged: fetch or export it again.'

const bad = (file: string, what: string, hint: string): UnslothError =>
  new UnslothError('FILE_FORMAT', `${file}: ${what}.`, { hint })
const isDtype = (value: unknown): value is SafetensorsDtype => typeof value === 'string' && Object.hasOwn(dtypeBits, value)

/** Number of elements; NaN when it exceeds what a number can count. */
export function elementCount(shape: readonly number[]): number {
  if (shape.includes(0)) return 0
  let count = 1
  for (const size of shape) {
    count *= size
    if (!Number.isSafeInteger(count)) return NaN
  }
  return count
}

/** Bytes of a tensor; NaN when they are not a whole, countable number. */
export function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number {
  const bytes = (elementCount(shape) * dtypeBits[dtype]) / 8
  return Number.isSafeInteger(bytes) ? bytes : NaN
}

/** What else a file may be when it does not begin like safetensors. */
function guessFormat(first: Uint8Array): string | undefined {
  const start = Buffer.from(first).toString('latin1')
  if (start.startsWith('version ')) return 'a Git LFS pointer: run `git lfs pull` in the folder to get the real file'
  if (start.startsWith('PK')) return 'a PyTorch checkpoint (pickle): convert it to safetensors first'
  if (start.startsWith('GGUF')) return 'a GGUF file: training needs the original safetensors model'
  if (/^\s*</.test(start)) return 'a web page, probably an error page saved by the download: fetch the file again'
  return undefined
}

/** The header length N from the first 8 bytes, checked against the file's size. */
export function safetensorsHeaderLength(first: Uint8Array, fileBytes: number, file: string): number {
  if (fileBytes < 8 || first.length < 8)
    throw bad(file, `only ${fileBytes} bytes long, too short for a safetensors file`, fetchAgain)
  const length = new DataView(first.buffer, first.byteOffset, 8).getBigUint64(0, true)
  const guess = length > BigInt(Math.min(maxHeaderBytes, fileBytes - 8)) ? guessFormat(first) : undefined
  if (guess !== undefined) throw bad(file, 'not a safetensors file', `It looks like ${guess}.`)
  if (length > BigInt(maxHeaderBytes))
    throw bad(file, `the header length ${length} is over the format's limit of ${formatCount(maxHeaderBytes)} bytes`, notWritten)
  const header = Number(length)
  if (8 + header > fileBytes)
    throw bad(
      file,
      `cut short: the header needs ${formatCount(8 + header)} bytes, the file has ${formatCount(fileBytes)}`,
      fetchAgain,
    )
  if (header < 2) throw bad(file, `the header length ${header} is too small`, notWritten)
  return header
}

function readShape(value: unknown, file: string, name: string): readonly number[] {
  if (!Array.isArray(value)) throw bad(file, `tensor ${quote(name)}: "shape" is not a list`, notWritten)
  return value.map((size: unknown) => {
    if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0 || Object.is(size, -0))
      throw bad(
        file,
        `tensor ${quote(name)}: "shape" has ${quote(String(JSON.stringify(size)), 40)} where a size is expected`,
        notWritten,
      )
    return size
  })
}

function readEntry(name: string, value: unknown, dataBegin: number, file: string): TensorEntry {
  if (/\p{Surrogate}/u.test(name)) throw bad(file, `tensor ${quote(name)}: the name is not valid Unicode`, notWritten)
  if (!isJsonObject(value)) throw bad(file, `tensor ${quote(name)}: its entry in the header is not an object`, notWritten)
  const { dtype, shape: sizes, data_offsets: offsets } = value
  if (!isDtype(dtype)) {
    const given = dtype === undefined ? 'has no "dtype"' : `has the unknown dtype ${quote(String(JSON.stringify(dtype)), 40)}`
    throw bad(file, `tensor ${quote(name)} ${given}`, `Known types: ${safetensorsDtypes.join(', ')}.`)
  }
  const shape = readShape(sizes, file, name)
  const [from, to] = Array.isArray(offsets) && offsets.length === 2 ? (offsets as unknown[]) : []
  const isOffset = (offset: unknown): offset is number => Number.isSafeInteger(offset) && (offset as number) >= 0
  if (!isOffset(from) || !isOffset(to) || !Number.isSafeInteger(dataBegin + to))
    throw bad(file, `tensor ${quote(name)}: "data_offsets" is not a pair of byte offsets`, notWritten)
  if (from > to) throw bad(file, `tensor ${quote(name)}: it ends (${to}) before it begins (${from})`, notWritten)
  const bytes = tensorBytes(dtype, shape)
  if (bytes !== to - from) {
    const needs = Number.isNaN(bytes) ? 'no whole number of bytes that a file can hold' : `${formatCount(bytes)} bytes`
    const sizesShown = `${shape.slice(0, 8).join(', ')}${shape.length > 8 ? ', …' : ''}`
    const spans = formatCount(to - from)
    throw bad(
      file,
      `tensor ${quote(name)}: ${dtype} of shape [${sizesShown}] needs ${needs}, its offsets span ${spans}`,
      notWritten,
    )
  }
  return { name, dtype, shape, begin: dataBegin + from, end: dataBegin + to }
}

function readMetadata(value: unknown, file: string): ReadonlyMap<string, string> {
  const metadata = new Map<string, string>()
  if (value === undefined || value === null) return metadata
  if (!isJsonObject(value)) throw bad(file, '"__metadata__" is not an object', notWritten)
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') throw bad(file, `"__metadata__": the value of ${quote(key)} is not a string`, notWritten)
    metadata.set(key, text)
  }
  return metadata
}

/** Tensors must cover the data part exactly: no overlap, no gap, nothing behind the last. */
function checkCoverage(tensors: readonly TensorEntry[], dataBegin: number, fileBytes: number, file: string): void {
  let position = dataBegin
  let previous = ''
  for (const { name, begin, end } of tensors) {
    if (begin < position) throw bad(file, `tensor ${quote(name)} overlaps ${quote(previous)}`, notWritten)
    if (begin > position)
      throw bad(file, `${formatCount(begin - position)} bytes before tensor ${quote(name)} belong to no tensor`, notWritten)
    position = end
    previous = name
  }
  const cut = tensors.find(({ end }) => end > fileBytes)
  if (cut !== undefined) {
    const sizes = `the file should have ${formatCount(position)} bytes and has ${formatCount(fileBytes)}`
    throw bad(file, `cut short: tensor ${quote(cut.name)} ends at byte ${formatCount(cut.end)}, ${sizes}`, fetchAgain)
  }
  if (position < fileBytes)
    throw bad(file, `${formatCount(fileBytes - position)} bytes after the last tensor belong to no tensor`, notWritten)
}

/** Parses the N header bytes of a file that is `fileBytes` long. Touches no file. */
export function parseSafetensorsHeader(header: Uint8Array, fileBytes: number, file: string): SafetensorsHeader {
  const dataBegin = 8 + header.length
  const text = decodeUtf8(header)
  if (text === undefined) throw bad(file, 'the header is not UTF-8 text', notWritten)
  if (!text.startsWith('{')) throw bad(file, `the header begins with ${quote(text.slice(0, 1))} instead of "{"`, notWritten)
  const json = parseJson(text, { file: `${file} (header)`, hint: notWritten }) as Record<string, unknown>
  const tensors: TensorEntry[] = []
  for (const [name, value] of Object.entries(json))
    if (name !== '__metadata__') tensors.push(readEntry(name, value, dataBegin, file))
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end)
  const metadata = readMetadata(Object.hasOwn(json, '__metadata__') ? json.__metadata__ : undefined, file)
  checkCoverage(tensors, dataBegin, fileBytes, file)
  return { tensors, metadata, dataBegin, fileBytes }
}

/** Reads exactly `bytes` bytes at `position`, or fewer at the end of the file. */
export async function readAt(handle: FileHandle, position: number, bytes: number): Promise<Uint8Array> {
  const buffer = new Uint8Array(bytes)
  let done = 0
  while (done < bytes) {
    const { bytesRead } = await handle.read(buffer, done, Math.min(bytes - done, 1 << 30), position + done)
    if (bytesRead === 0) break
    done += bytesRead
  }
  return buffer.subarray(0, done)
}

/** The header of a safetensors file on disk. Tensor data is not read. */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsHeader> {
  let handle: FileHandle | undefined
  try {
    // Asked before opening: opening a named pipe would wait for a writer.
    if (!(await stat(path)).isFile()) throw bad(path, 'not a file', 'Give the path of a .safetensors file.')
    handle = await open(path, 'r')
    const { size } = await handle.stat()
    const first = await readAt(handle, 0, 8)
    const length = safetensorsHeaderLength(first, size, path)
    const header = await readAt(handle, 8, length)
    if (header.length < length)
      throw bad(path, 'the file became shorter while it was read', 'Wait until it is completely written, then try again.')
    return parseSafetensorsHeader(header, size, path)
  } catch (error) {
    throw readError(error, path, `safetensors file ${basename(path)}`)
  } finally {
    await handle?.close()
  }
}
