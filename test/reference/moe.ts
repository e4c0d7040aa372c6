import { at, matrix, put, type Matrix } from './matrix.ts'

export interface Routing {
  readonly weight: Matrix
  readonly token: Matrix
  readonly place: Matrix
  readonly first: Matrix
  /** Expert of each choice [n,k]. */
  readonly expert: Matrix
}

export function softmax(logits: Matrix): Matrix {
  const result = matrix(logits.rows, logits.cols)
  for (let row = 0; row < logits.rows; row++) {
    const values = Array.from({ length: logits.cols }, (_, e) => Math.exp(at(logits, row, e)))
    const total = values.reduce((a, b) => a + b, 0)
    values.forEach((value, e) => put(result, row, e, value / total))
  }
  return result
}

/** The k largest of each row, largest first, the lower number on a tie. */
export function choices(logits: Matrix, k: number): Matrix {
  return matrix(
    logits.rows,
    k,
    (row, j) => [...Array(logits.cols).keys()].sort((a, b) => at(logits, row, b) - at(logits, row, a) || a - b)[j]!,
  )
}

/** Weights [n,k] of given choices. */
export function choiceWeights(logits: Matrix, expert: Matrix, renormalise: boolean): Matrix {
  const p = softmax(logits)
  return matrix(expert.rows, expert.cols, (row, j) => {
    const total = renormalise ? [...Array(expert.cols).keys()].reduce((sum, i) => sum + at(p, row, at(expert, row, i)), 0) : 1
    return at(p, row, at(expert, row, j)) / total
  })
}

export function route(logits: Matrix, k: number, renormalise: boolean): Routing {
  const expert = choices(logits, k)
  const weights = choiceWeights(logits, expert, renormalise)
  const slots = [...Array(logits.rows * k).keys()]
    .map((i) => ({ row: Math.floor(i / k), j: i % k, e: at(expert, Math.floor(i / k), i % k) }))
    .sort((a, b) => a.e - b.e || a.row - b.row || a.j - b.j)
  const place = matrix(logits.rows, k)
  slots.forEach(({ row, j }, slot) => put(place, row, j, slot))
  return {
    expert,
    place,
    weight: matrix(slots.length, 1, (slot) => at(weights, slots[slot]!.row, slots[slot]!.j)),
    token: matrix(slots.length, 1, (slot) => slots[slot]!.row),
    first: matrix(logits.cols + 1, 1, (e) => slots.filter((slot) => slot.e < e).length),
  }
}

/** Counts of each expert, then Σ_rows p. */
export function balance(logits: Matrix, expert: Matrix): Matrix {
  const p = softmax(logits)
  const experts = logits.cols
  return matrix(1, 2 * experts, (_, i) =>
    i < experts
      ? expert.data.reduce((sum, e) => sum + (e === i ? 1 : 0), 0)
      : [...Array(logits.rows).keys()].reduce((sum, row) => sum + at(p, row, i - experts), 0),
  )
}

/** E·Σ_e (counts_e/N)·(Σp_e/N) over several layers' balances. */
export function balanceLoss(balances: readonly Matrix[], k: number): number {
  const experts = balances[0]!.cols / 2
  const total = (i: number) => balances.reduce((sum, m) => sum + at(m, 0, i), 0)
  const rows = [...Array(experts).keys()].reduce((sum, e) => sum + total(e), 0) / k
  return experts * [...Array(experts).keys()].reduce((sum, e) => sum + (total(e) / rows) * (total(experts + e) / rows), 0)
}

/** Matrix e of a stack by rows, or by columns. */
export function ofStack(stack: Matrix, e: number, experts: number, byColumns: boolean): Matrix {
  return byColumns
    ? matrix(stack.rows, stack.cols / experts, (r, c) => at(stack, r, c * experts + e))
    : matrix(stack.rows / experts, stack.cols, (r, c) => at(stack, (e * stack.rows) / experts + r, c))
}
