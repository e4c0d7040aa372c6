import { open, type FileHandle } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'

/** What the head of a GGUF file says; weights are not read. */
export interface GgufFacts {
  readonly architecture: string
  readonly name: string | undefined
  readonly contextLength: number | undefined
  readonly parameters: number
  /** Types of the weights by ggml's names, the one with most parameters first. */
  readonly types: readonly string[]
}

/** enum ggml_type (ggml/include/ggml.h); gaps are types that no longer exist. */
const tensorTypes = [
  'F32',
  'F16',
  'Q4_0',
  'Q4_1',
  '',
  '',
  'Q5_0',
  'Q5_1',
  'Q8_0',
  'Q8_1',
  'Q2_K',
  'Q3_K',
  'Q4_K',
  'Q5_K',
  'Q6_K',
  'Q8_K',
  'IQ2_XXS',
  'IQ2_XS',
  'IQ3_XXS',
  'IQ1_S',
  'IQ4_NL',
  'IQ3_S',
  'IQ2_S',
  'IQ4_XS',
  'I8',
  'I16',
  'I32',
  'I64',
  'F64',
  'IQ1_M',
  'BF16',
  '',
  '',
  '',
  'TQ1_0',
  'TQ2_0',
  '',
  '',
  '',
  'MXFP4',
]

/** Bytes of a value by enum gguf_type; texts (8) and lists (9) have lengths of their own. */
const valueBytes: Readonly<Record<number, number>> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 }

/** Bytes that a head may have: those of real models have some 20 MB, most of it their vocabulary. */
const maxHead = 256 * 2 ** 20
const window = 2 ** 20
const maxText = 2 ** 24

/** Numbers and texts of a file in order, through a window. */
class Cursor {
  private bytes = Buffer.alloc(0)
  private start = 0
  private at = 0
  private readonly file: FileHandle
  private readonly path: string

  constructor(file: FileHandle, path: string) {
    this.file = file
    this.path = path
  }

  broken(what: string): UnslothError {
    return new UnslothError('FILE_FORMAT', `${this.path}: ${what} at byte ${this.at}.`, {
      hint: 'The file may be cut short: fetch or convert it again.',
    })
  }

  /** Goes over bytes without reading them. */
  skip(count: number): void {
    this.at += count
    if (this.at > maxHead) throw this.broken('the head does not end')
  }

  async take(count: number): Promise<Buffer> {
    const from = this.at
    this.skip(count)
    if (from < this.start || this.at > this.start + this.bytes.length) {
      const bytes = Buffer.allocUnsafe(Math.max(window, count))
      const { bytesRead } = await this.file.read(bytes, 0, bytes.length, from)
      this.bytes = bytes.subarray(0, bytesRead)
      this.start = from
      if (bytesRead < count) throw this.broken('the head ends')
    }
    return this.bytes.subarray(from - this.start, this.at - this.start)
  }

  async u32(): Promise<number> {
    return (await this.take(4)).readUInt32LE()
  }

  async u64(): Promise<number> {
    return Number((await this.take(8)).readBigUInt64LE())
  }

  async text(): Promise<string> {
    const length = await this.u64()
    if (length > maxText) throw this.broken(`a text of ${length} bytes`)
    return (await this.take(length)).toString('utf8')
  }

  /** A value of the metadata; lists are passed over. */
  async value(): Promise<string | number | undefined> {
    const type = await this.u32()
    if (type === 8) return this.text()
    if (type === 9) {
      await this.skipList()
      return undefined
    }
    const size = valueBytes[type]
    if (size === undefined) throw this.broken(`a value of the unknown type ${type}`)
    const bytes = await this.take(size)
    return type === 4
      ? bytes.readUInt32LE()
      : type === 5
        ? bytes.readInt32LE()
        : type === 10
          ? Number(bytes.readBigUInt64LE())
          : undefined
  }

  private async skipList(): Promise<void> {
    const type = await this.u32()
    const count = await this.u64()
    const size = valueBytes[type]
    if (size !== undefined) this.skip(count * size)
    else if (type === 8) for (let i = 0; i < count; i++) this.skip(await this.u64())
    else if (type === 9) for (let i = 0; i < count; i++) await this.skipList()
    else throw this.broken(`a list of the unknown type ${type}`)
  }
}

/** Reads the head of a GGUF file, version 2 or 3 (ggml/docs/gguf.md). Throws FILE_FORMAT for anything else. */
export async function ggufFacts(path: string): Promise<GgufFacts> {
  const file = await open(path)
  try {
    const cursor = new Cursor(file, path)
    if ((await cursor.take(4)).toString('latin1') !== 'GGUF')
      throw cursor.broken('this is no GGUF file: its first bytes are others')
    const version = await cursor.u32()
    if (version !== 2 && version !== 3) throw cursor.broken(`GGUF of version ${version}; versions 2 and 3 are read`)
    const [tensors, entries] = [await cursor.u64(), await cursor.u64()]
    const metadata = new Map<string, string | number | undefined>()
    for (let i = 0; i < entries; i++) metadata.set(await cursor.text(), await cursor.value())
    const byType = new Map<number, number>()
    for (let i = 0; i < tensors; i++) {
      await cursor.text()
      let elements = 1
      for (let rest = await cursor.u32(); rest > 0; rest--) elements *= await cursor.u64()
      const type = await cursor.u32()
      byType.set(type, (byType.get(type) ?? 0) + elements)
      await cursor.u64()
    }
    const text = (key: string): string | undefined =>
      typeof metadata.get(key) === 'string' ? (metadata.get(key) as string) : undefined
    const architecture = text('general.architecture') ?? 'unknown'
    const context = metadata.get(`${architecture}.context_length`)
    return {
      architecture,
      name: text('general.name'),
      contextLength: typeof context === 'number' ? context : undefined,
      parameters: [...byType.values()].reduce((sum, count) => sum + count, 0),
      types: [...byType].sort(([, a], [, b]) => b - a).map(([type]) => tensorTypes[type] || `type ${type}`),
    }
  } finally {
    await file.close()
  }
}
