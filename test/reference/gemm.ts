import { matrix, type Matrix } from './matrix.ts'

/** op(a)·op(b): mode 0 is a·bᵀ, 1 a·b, 2 aᵀ·b. */
export function product(a: Matrix, b: Matrix, mode: number): Matrix {
  const depth = mode === 2 ? a.rows : a.cols
  // Element (row, k) of op(a) and (k, col) of op(b) by two strides each.
  const [aRow, aDepth] = mode === 2 ? [1, a.cols] : [a.cols, 1]
  const [bDepth, bCol] = mode === 0 ? [1, b.cols] : [b.cols, 1]
  return matrix(mode === 2 ? a.cols : a.rows, mode === 0 ? b.rows : b.cols, (row, col) => {
    let total = 0
    for (let k = 0; k < depth; k++) total += a.data[row * aRow + k * aDepth]! * b.data[k * bDepth + col * bCol]!
    return total
  })
}
