import { product } from './gemm.ts'
import { at, matrix, type Matrix } from './matrix.ts'

/** ‖W_o + scale·B_o·A‖ of each row [1, out], from the sum itself (arXiv 2402.09353, eq. 5). */
export function rowNorms(w: Matrix, a: Matrix, b: Matrix, scale: number): Matrix {
  const delta = product(b, a, 1)
  return matrix(1, w.rows, (_, o) =>
    Math.hypot(...Array.from({ length: w.cols }, (_, c) => at(w, o, c) + scale * at(delta, o, c))),
  )
}

/** alpha·w⊙x + bias + add. */
export const scaleColumns = (x: Matrix, w: Matrix, alpha: number, bias?: Matrix, add?: Matrix): Matrix =>
  matrix(
    x.rows,
    x.cols,
    (r, c) =>
      alpha * at(w, 0, c) * at(x, r, c) + (bias === undefined ? 0 : at(bias, 0, c)) + (add === undefined ? 0 : at(add, r, c)),
  )
