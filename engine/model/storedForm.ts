/** How a checkpoint stores a matrix (or vector) otherwise than the graph uses it. */
export interface StoredForm {
  /** As [in, out]. */
  readonly transposed?: boolean
  /**
   * Rows come in `groups` groups of `parts[0]` rows of the first part, `parts[1]` of the second, …; in the graph all of a part
   * stand together (q, k and v of each head, as against all q, then all k, then all v).
   */
  readonly grouped?: { readonly groups: number; readonly parts: readonly number[] }
}

type Elements = Float32Array | Uint16Array | Uint32Array

/** For each of `rows` rows of the graph, the one of the file. */
function fileRows({ grouped }: StoredForm, rows: number): Int32Array {
  if (grouped === undefined) return Int32Array.from({ length: rows }, (_, row) => row)
  const { groups, parts } = grouped
  const width = parts.reduce((sum, part) => sum + part, 0)
  const order = new Int32Array(rows)
  let row = 0
  let before = 0
  for (const part of parts) {
    for (let group = 0; group < groups; ++group) for (let i = 0; i < part; ++i) order[row++] = group * width + before + i
    before += part
  }
  return order
}

function copy<T extends Elements>(from: T, into: T, form: StoredForm, rows: number, cols: number, toGraph: boolean): T {
  const order = fileRows(form, rows)
  const [rowStep, colStep] = form.transposed === true ? [1, rows] : [cols, 1]
  for (let row = 0; row < rows; ++row)
    for (let col = 0; col < cols; ++col) {
      const [inGraph, inFile] = [row * cols + col, order[row]! * rowStep + col * colStep]
      if (toGraph) into[inGraph] = from[inFile]!
      else into[inFile] = from[inGraph]!
    }
  return into
}

/** A file's elements as the graph's [rows, cols]; a vector is [n, 1]. */
export const toGraphForm = <T extends Elements>(data: T, form: StoredForm, rows: number, cols: number): T =>
  copy(data, data.slice() as T, form, rows, cols, true)

/** The inverse of `toGraphForm`. */
export const toFileForm = <T extends Elements>(data: T, form: StoredForm, rows: number, cols: number): T =>
  copy(data, data.slice() as T, form, rows, cols, false)
