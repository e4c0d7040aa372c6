import { at, copyOf, matrix, put, type Matrix } from './matrix.ts'

/** cos then sin of position·inverseFrequency, the angle rounded to fp32, times a factor. */
export function ropeTable(
  positions: readonly number[],
  table: readonly number[],
  inverseFrequency: Matrix,
  factor: readonly number[],
): Matrix {
  const half = inverseFrequency.cols
  return matrix(positions.length, 2 * half, (row, c) => {
    const angle = Math.fround(positions[row]! * at(inverseFrequency, table[row]!, c % half))
    return (c < half ? Math.cos(angle) : Math.sin(angle)) * factor[table[row]!]!
  })
}

/** (a, b) → (a·cos − b·sin, b·cos + a·sin) on pairs (i, i + half), or (2i, 2i + 1) when interleaved. */
export function rope(x: Matrix, cosSin: Matrix, heads: number, headDim: number, interleaved: boolean, inverse: boolean): Matrix {
  const half = cosSin.cols / 2
  const y = copyOf(x)
  for (let row = 0; row < x.rows; row++)
    for (let head = 0; head < heads; head++)
      for (let i = 0; i < half; i++) {
        const first = head * headDim + (interleaved ? 2 * i : i)
        const second = head * headDim + (interleaved ? 2 * i + 1 : i + half)
        const cosine = at(cosSin, row, i)
        const sine = at(cosSin, row, half + i) * (inverse ? -1 : 1)
        put(y, row, first, at(x, row, first) * cosine - at(x, row, second) * sine)
        put(y, row, second, at(x, row, second) * cosine + at(x, row, first) * sine)
      }
  return y
}
