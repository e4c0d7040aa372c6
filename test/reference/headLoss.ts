import { capped } from './activation.ts'
import { product } from './gemm.ts'
import { at, matrix, type Matrix } from './matrix.ts'

/** nll of each row: log Σ exp z − z[label] with z = softcap(logitScale·h·wᵀ). */
export function headLoss(h: Matrix, w: Matrix, labels: readonly number[], logitScale: number, softcap: number): Matrix {
  const logits = product(h, w, 0)
  return matrix(h.rows, 1, (row) => {
    const z = Array.from({ length: w.rows }, (_, j) => capped(at(logits, row, j), logitScale, softcap))
    const highest = Math.max(...z)
    return highest + Math.log(z.reduce((total, value) => total + Math.exp(value - highest), 0)) - z[labels[row]!]!
  })
}
