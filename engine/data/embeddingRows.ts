import { open } from 'node:fs/promises'
import { readError } from '../io/fileSystem.ts'
import { decodeElements } from '../io/tensorConvert.ts'
import { openTensorSource, type TensorLocation } from '../io/tensorSource.ts'

/** Names of the two tensors that have a row for each token. */
const embeddingName = /(?:^|\.)(?:embed_tokens|wte)\.weight$/
const headName = /(?:^|\.)lm_head\.weight$/

/** Rows of a tensor read at once. */
const rowsAtOnce = 4096

/** An embedding or output matrix of a model folder. */
export interface RowMatrix {
  readonly name: string
  readonly rows: number
  readonly cols: number
  /** Largest absolute value of each of these rows. */
  largest(rows: readonly number[]): Promise<Map<number, number>>
  /** What `view` makes of each of these rows. */
  each<T>(rows: readonly number[], view: (values: Float32Array) => T): Promise<Map<number, T>>
}

function matrixOf({ name, path, dtype, shape, offset, bytes }: TensorLocation): RowMatrix {
  const [rows, cols] = [shape[0] ?? 0, shape[1] ?? 0]
  const rowBytes = rows === 0 ? 0 : bytes / rows
  const each = async <T>(asked: readonly number[], view: (values: Float32Array) => T): Promise<Map<number, T>> => {
    const wanted = new Set(asked.filter((row) => row >= 0 && row < rows))
    const sorted = [...wanted].sort((a, b) => a - b)
    const found = new Map<number, T>()
    if (sorted.length === 0) return found
    const handle = await open(path).catch((error: unknown) => {
      throw readError(error, path, 'weights')
    })
    try {
      for (let index = 0; index < sorted.length;) {
        const first = sorted[index]!
        let end = index
        while (end + 1 < sorted.length && sorted[end + 1]! - sorted[end]! <= 8 && sorted[end + 1]! - first < rowsAtOnce) end++
        const count = sorted[end]! - first + 1
        const buffer = Buffer.alloc(count * rowBytes)
        await handle.read(buffer, 0, buffer.length, offset + first * rowBytes)
        const values = Float32Array.from(decodeElements(dtype, buffer, path) as ArrayLike<number>)
        for (let row = first; row < first + count; row++)
          if (wanted.has(row)) found.set(row, view(values.subarray((row - first) * cols, (row - first + 1) * cols)))
        index = end + 1
      }
      return found
    } finally {
      await handle.close()
    }
  }
  return { name, rows, cols, each, largest: (asked) => each(asked, largestOf) }
}

const largestOf = (values: Float32Array): number => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0)

/** The matrices of a model folder that have a row for each token; none where there are no weights. */
export async function tokenMatrices(folder: string): Promise<{ embedding: RowMatrix | undefined; head: RowMatrix | undefined }> {
  const source = await openTensorSource(folder).catch(() => undefined)
  const find = (pattern: RegExp): RowMatrix | undefined => {
    const tensor = [...(source?.tensors.values() ?? [])].find(
      ({ name, shape, dtype }) => pattern.test(name) && shape.length === 2 && /^(?:F|BF)/.test(dtype),
    )
    return tensor && matrixOf(tensor)
  }
  return { embedding: find(embeddingName), head: find(headName) }
}

/** A row at or below this was never trained: it is zero, or as good as that. */
export const untrainedBelow = 1e-16

/** A row as text, to three decimals: rows that are equal to that were never told apart. */
const rounded = (values: Float32Array): string => Array.from(values, (value) => value.toFixed(3)).join()

/**
 * Tokens among `ids` whose rows were never trained, by the largest absolute value (a row of small negatives is trained): in the
 * embedding and, where the model has one of its own, in the output matrix, whose row may also be the same as that of another.
 */
export async function untrainedTokens(folder: string, ids: readonly number[]): Promise<number[]> {
  const { embedding, head } = await tokenMatrices(folder)
  if (embedding === undefined || ids.length === 0) return []
  const input = await embedding.largest(ids)
  const empty = ids.filter((id) => (input.get(id) ?? 1) <= untrainedBelow)
  if (head === undefined || empty.length === 0) return empty
  const output = await head.each(empty, (values) => ({ largest: largestOf(values), text: rounded(values) }))
  const times = new Map<string, number>()
  for (const { text } of output.values()) times.set(text, (times.get(text) ?? 0) + 1)
  return empty.filter((id) => {
    const row = output.get(id)
    return row !== undefined && (row.largest <= untrainedBelow || times.get(row.text)! > 1)
  })
}
