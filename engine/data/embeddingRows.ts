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
}

function matrixOf({ name, path, dtype, shape, offset, bytes }: TensorLocation): RowMatrix {
  const [rows, cols] = [shape[0] ?? 0, shape[1] ?? 0]
  const rowBytes = rows === 0 ? 0 : bytes / rows
  const read = async (first: number, count: number, wanted: ReadonlySet<number>, found: Map<number, number>): Promise<void> => {
    const handle = await open(path).catch((error: unknown) => {
      throw readError(error, path, 'weights')
    })
    try {
      const buffer = Buffer.alloc(count * rowBytes)
      await handle.read(buffer, 0, buffer.length, offset + first * rowBytes)
      const values = decodeElements(dtype, buffer, path)
      for (let row = first; row < first + count; row++) {
        if (!wanted.has(row)) continue
        let largest = 0
        for (let at = (row - first) * cols; at < (row - first + 1) * cols; at++) largest = Math.max(largest, Math.abs(Number(values[at])))
        found.set(row, largest)
      }
    } finally {
      await handle.close()
    }
  }
  return {
    name, rows, cols,
    async largest(asked) {
      const wanted = new Set(asked.filter((row) => row >= 0 && row < rows))
      const sorted = [...wanted].sort((a, b) => a - b)
      const found = new Map<number, number>()
      for (let index = 0; index < sorted.length; ) {
        const first = sorted[index]!
        let end = index
        while (end + 1 < sorted.length && sorted[end + 1]! - sorted[end]! <= 8 && sorted[end + 1]! - first < rowsAtOnce) end++
        await read(first, sorted[end]! - first + 1, wanted, found)
        index = end + 1
      }
      return found
    },
  }
}

/** The matrices of a model folder that have a row for each token; none where there are no weights. */
export async function tokenMatrices(folder: string): Promise<{ embedding: RowMatrix | undefined; head: RowMatrix | undefined }> {
  const source = await openTensorSource(folder).catch(() => undefined)
  const find = (pattern: RegExp): RowMatrix | undefined => {
    const tensor = [...(source?.tensors.values() ?? [])].find(({ name, shape, dtype }) => pattern.test(name) && shape.length === 2 && /^(?:F|BF)/.test(dtype))
    return tensor && matrixOf(tensor)
  }
  return { embedding: find(embeddingName), head: find(headName) }
}

/** A row at or below this was never trained: it is zero, or as good as that. */
const untrainedBelow = 1e-16

/**
 * Tokens among `ids` whose rows were never trained, by the largest absolute value (a row of small negatives is trained): in the
 * embedding and, where the model has one of its own, in the output matrix.
 */
export async function untrainedTokens(folder: string, ids: readonly number[]): Promise<number[]> {
  const { embedding, head } = await tokenMatrices(folder)
  if (embedding === undefined || ids.length === 0) return []
  const [input, output] = [await embedding.largest(ids), head === undefined ? undefined : await head.largest(ids)]
  return ids.filter((id) => (input.get(id) ?? 1) <= untrainedBelow && (output === undefined || (output.get(id) ?? 1) <= untrainedBelow))
}
