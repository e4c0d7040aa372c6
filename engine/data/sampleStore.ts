import { closeSync, openSync, readSync } from 'node:fs'
import { mkdir, open, readdir, rename, rm, stat, utimes, type FileHandle } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { spansAt, tableWidth, type EncodedBatch } from './encodedBatch.ts'
import type { TokenSpan } from './completionSpans.ts'
import { countTrained, labelsOf, type Sample } from './sample.ts'

/** Bytes of token ids that are kept in memory; beyond it, samples are read from the file when they are needed. */
const memoryLimit = 256 * 2 ** 20

const magic = Buffer.from('UNSLDAT1')
/** Counts of ids, table entries and span entries, and bytes of the header, as doubles; then the magic again. */
const footerBytes = 4 * 8 + magic.length

/** A file of samples that stays open for as long as any of them may be read. */
class OpenFile {
  private readonly descriptor: number
  private static readonly closing = new FinalizationRegistry<number>((descriptor) => closeSync(descriptor))

  constructor(path: string) {
    this.descriptor = openSync(path, 'r')
    OpenFile.closing.register(this, this.descriptor)
  }

  ids(start: number, count: number): Int32Array {
    const ids = new Int32Array(count)
    readSync(this.descriptor, ids, 0, ids.byteLength, magic.length + start * 4)
    return ids
  }
}

/**
 * What samples are made of, in a few arrays: a sample itself is only its number, so that millions of them need little memory
 * beside their tokens.
 */
class SampleColumns {
  readonly table: Int32Array
  readonly spans: Int32Array
  readonly files: readonly string[]
  private readonly source: { readonly memory: Int32Array } | { readonly file: OpenFile }
  /** Where the tokens of each sample begin, and its spans. */
  private readonly starts: Float64Array
  private readonly firstSpans: Uint32Array

  constructor(
    table: Int32Array,
    spans: Int32Array,
    files: readonly string[],
    source: { memory: Int32Array } | { file: OpenFile },
  ) {
    this.table = table
    this.spans = spans
    this.files = files
    this.source = source
    const count = table.length / tableWidth
    this.starts = new Float64Array(count)
    this.firstSpans = new Uint32Array(count)
    let [start, span] = [0, 0]
    for (let index = 0; index < count; index++) {
      this.starts[index] = start
      this.firstSpans[index] = span
      start += table[index * tableWidth]!
      span += 2 * table[index * tableWidth + 1]!
    }
  }

  get count(): number {
    return this.starts.length
  }

  number(index: number, column: number): number {
    return this.table[index * tableWidth + column]!
  }

  ids(index: number): Int32Array {
    const [start, length] = [this.starts[index]!, this.number(index, 0)]
    return 'memory' in this.source ? this.source.memory.subarray(start, start + length) : this.source.file.ids(start, length)
  }

  spansOf(index: number): TokenSpan[] {
    return spansAt(this.spans, this.firstSpans[index]!, this.number(index, 1))
  }
}

class StoredSample implements Sample {
  private readonly columns: SampleColumns
  private readonly index: number

  constructor(columns: SampleColumns, index: number) {
    this.columns = columns
    this.index = index
  }

  get ids(): Int32Array {
    return this.columns.ids(this.index)
  }

  get length(): number {
    return this.columns.number(this.index, 0)
  }

  get labels(): Int32Array {
    return labelsOf(this.ids, this.columns.spansOf(this.index))
  }

  get labelled(): number {
    return countTrained(this.columns.spansOf(this.index))
  }

  get file(): string {
    return this.columns.files[this.columns.number(this.index, 2)]!
  }

  get line(): number {
    return this.columns.number(this.index, 3)
  }
}

/** Samples that were stored, and what was stored with them. */
export interface StoredSamples {
  readonly samples: readonly Sample[]
  readonly header: Readonly<Record<string, unknown>>
}

function samplesOf(...columns: ConstructorParameters<typeof SampleColumns>): Sample[] {
  const made = new SampleColumns(...columns)
  return Array.from({ length: made.count }, (_, index) => new StoredSample(made, index))
}

const bytesOf = (numbers: Int32Array): Uint8Array => new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength)

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/**
 * Takes samples batch by batch and, given a path, writes them beside it; `finish` moves the file to its place. A file that cannot
 * be written is given up: then everything stays in memory.
 */
export class SampleWriter {
  private readonly path: string | undefined
  private readonly limit: number
  private handle: FileHandle | undefined
  private draft = ''
  private ids: Int32Array[] | undefined = []
  /** Made so far. */
  tokens = 0
  samples = 0
  private readonly tables: Int32Array[] = []
  private readonly spans: Int32Array[] = []
  private readonly files: string[] = []

  private constructor(path: string | undefined, limit: number) {
    this.path = path
    this.limit = limit
  }

  /** `limit`: bytes of ids to keep in memory, when there is a file. */
  static async open(path: string | undefined, limit = memoryLimit): Promise<SampleWriter> {
    const writer = new SampleWriter(path, limit)
    if (path === undefined) return writer
    try {
      await mkdir(dirname(path), { recursive: true })
      writer.draft = `${path}.${process.pid}.${Date.now().toString(36)}.part`
      writer.handle = await open(writer.draft, 'wx')
      await writer.handle.write(magic)
    } catch {
      await writer.giveUp()
    }
    return writer
  }

  async add({ files, ids, table, spans }: EncodedBatch): Promise<void> {
    const numbers = files.map((file) => {
      const known = this.files.lastIndexOf(file)
      return known >= 0 ? known : this.files.push(file) - 1
    })
    const own = table.slice()
    for (let at = 2; at < own.length; at += tableWidth) own[at] = numbers[own[at]!]!
    this.tables.push(own)
    this.spans.push(spans)
    this.tokens += ids.length
    this.samples += own.length / tableWidth
    await this.write(bytesOf(ids))
    this.ids?.push(ids)
    if (this.handle !== undefined && this.tokens * 4 > this.limit) this.ids = undefined
  }

  async finish(header: Readonly<Record<string, unknown>>): Promise<readonly Sample[]> {
    const [table, spans] = [joined(this.tables), joined(this.spans)]
    if (this.handle !== undefined) {
      const text = Buffer.from(JSON.stringify({ ...header, files: this.files }))
      const footer = Buffer.alloc(footerBytes)
      for (const [index, count] of [this.tokens, table.length, spans.length, text.length].entries())
        footer.writeDoubleLE(count, index * 8)
      magic.copy(footer, 32)
      for (const part of [bytesOf(table), bytesOf(spans), text, footer]) await this.write(part)
    }
    const kept = await this.publish()
    if (this.ids !== undefined) return samplesOf(table, spans, this.files, { memory: joined(this.ids) })
    if (kept === undefined)
      throw new UnslothError(
        'FILE_WRITE',
        `${this.path}: the tokens of a data set larger than the memory could not be written.`,
        { hint: 'Free some space there, or set XDG_CACHE_HOME to a folder with more room.' },
      )
    return samplesOf(table, spans, this.files, { file: new OpenFile(kept) })
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    await this.giveUp()
  }

  private async publish(): Promise<string | undefined> {
    const { handle, path } = this
    if (handle === undefined || path === undefined) return undefined
    try {
      await handle.sync()
      await handle.close()
      this.handle = undefined
      await rename(this.draft, path)
      return path
    } catch {
      await this.giveUp()
      return undefined
    }
  }

  private async write(bytes: Uint8Array): Promise<void> {
    if (this.handle === undefined || bytes.length === 0) return
    try {
      await this.handle.writeFile(bytes)
    } catch (error) {
      const lost = this.ids === undefined
      await this.giveUp()
      if (lost)
        throw new UnslothError('FILE_WRITE', `${this.draft}: ${(error as Error).message}.`, {
          hint:
            'The data set is larger than the memory and needs room on disk: free some, ' +
            'or set XDG_CACHE_HOME to another folder.',
          cause: error,
        })
    }
  }

  private async giveUp(): Promise<void> {
    const { handle } = this
    this.handle = undefined
    await handle?.close().catch(() => undefined)
    if (this.draft !== '') await rm(this.draft, { force: true }).catch(() => undefined)
  }
}

/** Stored samples; undefined when there are none, or the file is not whole. */
export async function openStoredSamples(path: string, limit = memoryLimit): Promise<StoredSamples | undefined> {
  let handle: FileHandle
  try {
    handle = await open(path)
  } catch {
    return undefined
  }
  try {
    const { size } = await handle.stat()
    const footer = Buffer.alloc(footerBytes)
    await handle.read(footer, 0, footerBytes, Math.max(0, size - footerBytes))
    const [tokens, tableLength, spanLength, headerBytes] = [0, 8, 16, 24].map((at) => footer.readDoubleLE(at)) as [
      number,
      number,
      number,
      number,
    ]
    const tableAt = magic.length + tokens * 4
    const headerAt = tableAt + (tableLength + spanLength) * 4
    if (!footer.subarray(32).equals(magic) || headerAt + headerBytes + footerBytes !== size) return undefined
    const numbers = async (at: number, length: number): Promise<Int32Array> => {
      const values = new Int32Array(length)
      await handle.read(values, 0, values.byteLength, at)
      return values
    }
    const [table, spans] = [await numbers(tableAt, tableLength), await numbers(tableAt + tableLength * 4, spanLength)]
    const text = Buffer.alloc(headerBytes)
    await handle.read(text, 0, headerBytes, headerAt)
    const header: unknown = JSON.parse(text.toString('utf8'))
    if (!isJsonObject(header) || !Array.isArray(header.files)) return undefined
    const source = tokens * 4 <= limit ? { memory: await numbers(magic.length, tokens) } : { file: new OpenFile(path) }
    // Its age tells when it was used last.
    await utimes(path, new Date(), new Date()).catch(() => undefined)
    return { samples: samplesOf(table, spans, header.files as string[], source), header }
  } catch {
    return undefined
  } finally {
    await handle.close()
  }
}

/** Removes files of the folder that have not been used for `days`, and drafts of processes that ended. */
export async function pruneStoredSamples(folder: string, days = 30): Promise<void> {
  const names = await readdir(folder).catch(() => [])
  for (const name of names) {
    const path = join(folder, name)
    const age = await stat(path).then(
      ({ mtimeMs }) => (Date.now() - mtimeMs) / 86_400_000,
      () => 0,
    )
    if (age > (name.endsWith('.part') ? 1 : days)) await rm(path, { force: true }).catch(() => undefined)
  }
}
