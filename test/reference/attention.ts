import { capped } from './activation.ts'
import { at, matrix, put, type Matrix } from './matrix.ts'

export interface AttentionCase {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly window: number
  readonly scale: number
  readonly softcap: number
  readonly qStart: readonly number[]
  readonly kvStart: readonly number[]
  readonly kvLength: readonly number[]
}

/** Calls back with every visible (query row, key row, query head, kv head) pair, grouped by query row and head. */
function eachRow(c: AttentionCase, visit: (row: number, head: number, kvHead: number, keys: number[]) => void): void {
  c.kvLength.forEach((length, sequence) => {
    const first = c.qStart[sequence]!
    const queries = c.qStart[sequence + 1]! - first
    for (let i = 0; i < queries; i++)
      for (let head = 0; head < c.heads; head++) {
        const position = length - queries + i
        const keys = Array.from({ length: position + 1 }, (_, t) => t).filter((t) => c.window === 0 || position - t < c.window)
        visit(
          first + i,
          head,
          Math.floor((head * c.kvHeads) / c.heads),
          keys.map((t) => c.kvStart[sequence]! + t),
        )
      }
  })
}

const dot = (a: Matrix, aRow: number, aCol: number, b: Matrix, bRow: number, bCol: number, count: number): number => {
  const aFirst = aRow * a.cols + aCol
  const bFirst = bRow * b.cols + bCol
  let product = 0
  for (let i = 0; i < count; i++) product += a.data[aFirst + i]! * b.data[bFirst + i]!
  return product
}

/** y[yRow, yCol…] += factor·x[xRow, xCol…] */
const addScaled = (
  y: Matrix,
  yRow: number,
  yCol: number,
  factor: number,
  x: Matrix,
  xRow: number,
  xCol: number,
  count: number,
): void => {
  const to = yRow * y.cols + yCol
  const from = xRow * x.cols + xCol
  for (let i = 0; i < count; i++) y.data[to + i]! += factor * x.data[from + i]!
}

const scoreOf = (c: AttentionCase, q: Matrix, k: Matrix, row: number, head: number, kvHead: number, key: number): number =>
  capped(dot(q, row, head * c.headDim, k, key, kvHead * c.headDim, c.headDim), c.scale, c.softcap)

/** softmax(score)·v with the whole score row in memory. */
export function attention(c: AttentionCase, q: Matrix, k: Matrix, v: Matrix): { o: Matrix; lse: Matrix } {
  const o = matrix(q.rows, q.cols)
  const lse = matrix(q.rows, c.heads)
  eachRow(c, (row, head, kvHead, keys) => {
    const scores = keys.map((key) => scoreOf(c, q, k, row, head, kvHead, key))
    const highest = Math.max(...scores)
    const total = scores.reduce((sum, score) => sum + Math.exp(score - highest), 0)
    put(lse, row, head, highest + Math.log(total))
    keys.forEach((key, j) => {
      const p = Math.exp(scores[j]! - highest) / total
      addScaled(o, row, head * c.headDim, p, v, key, kvHead * c.headDim, c.headDim)
    })
  })
  return { o, lse }
}

/** The gradient, written out for one row of scores at a time. */
export function attentionGrad(
  c: AttentionCase,
  dO: Matrix,
  q: Matrix,
  k: Matrix,
  v: Matrix,
): { dq: Matrix; dk: Matrix; dv: Matrix } {
  const dq = matrix(q.rows, q.cols)
  const dk = matrix(k.rows, k.cols)
  const dv = matrix(v.rows, v.cols)
  const { o, lse } = attention(c, q, k, v)
  eachRow(c, (row, head, kvHead, keys) => {
    const column = head * c.headDim
    const kvColumn = kvHead * c.headDim
    const delta = dot(dO, row, column, o, row, column, c.headDim)
    for (const key of keys) {
      const score = scoreOf(c, q, k, row, head, kvHead, key)
      const p = Math.exp(score - at(lse, row, head))
      const dp = dot(dO, row, column, v, key, kvColumn, c.headDim)
      const bend = c.softcap === 0 ? 1 : 1 - (score / c.softcap) ** 2
      const ds = p * (dp - delta) * bend * c.scale
      addScaled(dv, key, kvColumn, p, dO, row, column, c.headDim)
      addScaled(dq, row, column, ds, k, key, kvColumn, c.headDim)
      addScaled(dk, key, kvColumn, ds, q, row, column, c.headDim)
    }
  })
  return { dq, dk, dv }
}
