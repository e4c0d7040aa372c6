import { at, matrix, put, type Matrix } from './matrix.ts'

const weightOf = (w: Matrix, col: number, plusOne: boolean): number => at(w, 0, col % w.cols) + (plusOne ? 1 : 0)

/** y = x·r·w in each of `groups` column groups, r = 1/√(mean x² + eps). */
export function rmsNorm(x: Matrix, w: Matrix, groups: number, plusOne: boolean, eps: number): { y: Matrix; rstd: Matrix } {
  const width = x.cols / groups
  const rstd = matrix(x.rows, groups, (row, group) => {
    let squares = 0
    for (let c = group * width; c < (group + 1) * width; c++) squares += at(x, row, c) ** 2
    return 1 / Math.sqrt(squares / width + eps)
  })
  const y = matrix(x.rows, x.cols, (row, c) => at(x, row, c) * at(rstd, row, Math.floor(c / width)) * weightOf(w, c, plusOne))
  return { y, rstd }
}

/** y = (x − μ)·r·w + b in each group; stats holds (μ, r) pairs. */
export function layerNorm(
  x: Matrix,
  w: Matrix,
  b: Matrix | undefined,
  groups: number,
  eps: number,
): { y: Matrix; stats: Matrix } {
  const width = x.cols / groups
  const stats = matrix(x.rows, 2 * groups)
  for (let row = 0; row < x.rows; row++)
    for (let group = 0; group < groups; group++) {
      const values = Array.from({ length: width }, (_, c) => at(x, row, group * width + c))
      const mean = values.reduce((total, value) => total + value, 0) / width
      const variance = values.reduce((total, value) => total + (value - mean) ** 2, 0) / width
      put(stats, row, 2 * group, mean)
      put(stats, row, 2 * group + 1, 1 / Math.sqrt(variance + eps))
    }
  const y = matrix(x.rows, x.cols, (row, c) => {
    const group = Math.floor(c / width)
    const unit = (at(x, row, c) - at(stats, row, 2 * group)) * at(stats, row, 2 * group + 1)
    return unit * at(w, 0, c % w.cols) + (b === undefined ? 0 : at(b, 0, c % b.cols))
  })
  return { y, stats }
}
