import { open } from 'node:fs/promises'

/** What a bounded look at a data file tells. */
export interface TableFacts {
  readonly rows: number
  /** Whether `rows` was counted and not estimated. */
  readonly exact: boolean
  readonly columns: readonly string[]
  /** `chatml`, `alpaca`, `text`, … or `CSV`, `Parquet`. */
  readonly format: string
  readonly problem?: string
}

const headBytes = 256 * 1024
/** Bytes that are counted through; of larger files the rest is judged by the beginning. */
const countedBytes = 16 * 2 ** 20

/** Rows and columns of a CSV or TSV file with a head line. Line breaks inside quotes do not count. */
export async function delimitedFacts(path: string): Promise<TableFacts> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const counter = new RowCounter()
    const buffer = Buffer.alloc(headBytes)
    let at = 0
    let columns: readonly string[] | undefined
    while (at < Math.min(size, countedBytes)) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, at)
      if (bytesRead === 0) break
      columns ??= splitHead(buffer.toString('utf8', 0, bytesRead), /\.tsv$/i.test(path) ? '\t' : undefined)
      counter.push(buffer.subarray(0, bytesRead))
      at += bytesRead
    }
    const exact = at >= size
    const lines = exact ? counter.rows : Math.round((counter.rows * size) / Math.max(1, at))
    return { rows: Math.max(0, lines - 1), exact, columns: columns ?? [], format: /\.tsv$/i.test(path) ? 'TSV' : 'CSV' }
  } finally {
    await file.close()
  }
}

class RowCounter {
  #lines = 0
  #quoted = false
  #open = false

  /** Lines, a last one without line break included. */
  get rows(): number {
    return this.#lines + Number(this.#open)
  }

  push(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (byte === 0x22) this.#quoted = !this.#quoted
      if (byte === 0x0a && !this.#quoted) {
        if (this.#open) this.#lines++
        this.#open = false
      } else if (byte !== 0x0d) this.#open = true
    }
  }
}

/** Names in the first line; the delimiter is the one that stands there most often outside quotes. */
export function splitHead(text: string, delimiter?: string): string[] {
  const cells = (by: string): string[] => {
    const found: string[] = []
    let cell = ''
    let quoted = false
    for (let at = 0; at < text.length; at++) {
      const char = text[at]!
      if (quoted && char === '"' && text[at + 1] === '"') {
        cell += '"'
        at++
      } else if (char === '"') quoted = !quoted
      else if (!quoted && (char === '\n' || char === '\r')) break
      else if (!quoted && char === by) {
        found.push(cell)
        cell = ''
      } else cell += char
    }
    return [...found, cell].map((name) => name.replace(/^\ufeff/, '').trim())
  }
  if (delimiter !== undefined) return cells(delimiter)
  return [',', ';', '\t', '|'].map(cells).reduce((best, names) => (names.length > best.length ? names : best))
}
