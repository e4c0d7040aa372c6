import { at, matrix, type Matrix } from './matrix.ts'

/** op(a)·op(b): mode 0 is a·bᵀ, 1 a·b, 2 aᵀ·b. */
export function product(a: Matrix, b: Matrix, mode: number): Matrix {
  const depth = mode === 2 ? a.rows : a.cols
  return matrix(mode === 2 ? a.cols : a.rows, mode === 0 ? b.rows : b.cols, (row, col) => {
    let total = 0
    for (let k = 0; k < depth; k++) total += (mode === 2 ? at(a, k, row) : at(a, row, k)) * (mode === 0 ? at(b, col, k) : at(b, k, col))
    return total
  })
}
