import { open } from 'node:fs/promises'
import type { TableFacts } from './tableFacts.ts'

/** Footers are a few kilobytes; a larger one is damage or malice. */
const maxFooter = 16 * 2 ** 20
const maxDepth = 16
const maxItems = 1_000_000

type Thrift = number | string | boolean | Thrift[] | Map<number, Thrift>

/** Reads Thrift's compact protocol (thrift-compact-protocol.md) into maps by field number; only what a footer uses. */
class CompactReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  struct(depth = 0): Map<number, Thrift> {
    if (depth > maxDepth) throw new RangeError('nested too deep')
    const fields = new Map<number, Thrift>()
    let id = 0
    for (;;) {
      const head = this.#byte()
      if (head === 0) return fields
      const delta = head >> 4
      id = delta === 0 ? this.#zigzag() : id + delta
      fields.set(id, this.#value(head & 15, depth))
    }
  }

  #value(type: number, depth: number): Thrift {
    switch (type) {
      case 1: return true
      case 2: return false
      case 3: return this.#byte()
      case 4: case 5: case 6: return this.#zigzag()
      case 7: this.#at += 8; return 0
      case 8: return this.#text()
      case 9: case 10: return this.#list(depth)
      case 12: return this.struct(depth + 1)
      default: throw new RangeError(`type ${type} is not one of a footer`)
    }
  }

  #list(depth: number): Thrift[] {
    const head = this.#byte()
    const size = head >> 4 === 15 ? this.#varint() : head >> 4
    if (size > maxItems) throw new RangeError('a list is too long')
    const type = head & 15
    return Array.from({ length: size }, () => (type === 1 || type === 2 ? this.#byte() === 1 : this.#value(type, depth + 1)))
  }

  #text(): string {
    const length = this.#varint()
    if (this.#at + length > this.#bytes.length) throw new RangeError('a text ends behind the footer')
    this.#at += length
    return this.#bytes.toString('utf8', this.#at - length, this.#at)
  }

  #byte(): number {
    const byte = this.#bytes[this.#at++]
    if (byte === undefined) throw new RangeError('the footer ends early')
    return byte
  }

  #varint(): number {
    let value = 0
    for (let scale = 1; ; scale *= 128) {
      const byte = this.#byte()
      value += (byte & 127) * scale
      if (byte < 128) return value
      if (scale > 2 ** 56) throw new RangeError('a number is too long')
    }
  }

  #zigzag(): number {
    const value = this.#varint()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }
}

/** Rows and columns of a Parquet file, from its footer (FileMetaData of parquet.thrift: 2 schema, 3 num_rows). */
export async function parquetFacts(path: string): Promise<TableFacts> {
  const damaged = (problem: string): TableFacts => ({ rows: 0, exact: false, columns: [], format: 'Parquet', problem })
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const tail = Buffer.alloc(8)
    if (size < 12 || (await file.read(tail, 0, 8, size - 8)).bytesRead < 8 || tail.toString('latin1', 4) !== 'PAR1') return damaged('it does not end as a Parquet file does')
    const length = tail.readUInt32LE(0)
    if (length > Math.min(size - 12, maxFooter)) return damaged(`its footer of ${length} bytes does not fit`)
    const footer = Buffer.alloc(length)
    await file.read(footer, 0, length, size - 8 - length)
    const metadata = new CompactReader(footer).struct()
    const schema = (metadata.get(2) as Map<number, Thrift>[] | undefined) ?? []
    const rows = metadata.get(3)
    return { rows: typeof rows === 'number' ? rows : 0, exact: typeof rows === 'number', columns: topColumns(schema), format: 'Parquet' }
  } catch (error) {
    if (error instanceof RangeError) return damaged(`its footer is damaged: ${error.message}`)
    throw error
  } finally {
    await file.close()
  }
}

/** The schema is a tree in preorder (4 name, 5 num_children): the children of its root are the columns. */
function topColumns(schema: readonly Map<number, Thrift>[]): string[] {
  const names: string[] = []
  let at = 1
  const skip = (): void => {
    const children = schema[at++]?.get(5)
    for (let left = typeof children === 'number' ? children : 0; left > 0 && at < schema.length; left--) skip()
  }
  while (at < schema.length) {
    names.push(String(schema[at]!.get(4) ?? ''))
    skip()
  }
  return names
}
