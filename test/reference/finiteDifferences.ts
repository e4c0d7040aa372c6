import { at, copyOf, matrix, put, type Matrix } from './matrix.ts'

/** ∂loss/∂x by central differences of a double-precision loss: error about step² and 1e-16/step. */
export function finiteDifferences(loss: (x: Matrix) => number, x: Matrix, step = 1e-5): Matrix {
  const moved = copyOf(x)
  return matrix(x.rows, x.cols, (row, col) => {
    const value = at(x, row, col)
    put(moved, row, col, value + step)
    const above = loss(moved)
    put(moved, row, col, value - step)
    const below = loss(moved)
    put(moved, row, col, value)
    return (above - below) / (2 * step)
  })
}
