import { at, matrix, type Matrix } from './matrix.ts'

/** Activation kinds as the commands number them. */
export const kinds = { silu: 0, geluTanh: 1, geluErf: 2, reluSquared: 3, relu: 4, sigmoid: 5 } as const

/** erfc by its continued fraction for z ≥ 2 and the series of erf below: 1e-15. */
export function erfc(z: number): number {
  if (z < 0) return 2 - erfc(-z)
  if (z < 2) {
    let term = z
    let total = z
    for (let n = 1; n < 60; n++) {
      term *= (-z * z) / n
      total += term / (2 * n + 1)
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * total
  }
  let fraction = z
  for (let n = 80; n >= 1; n--) fraction = z + n / 2 / fraction
  return Math.exp(-z * z) / (Math.sqrt(Math.PI) * fraction)
}

export function act(x: number, kind: number): number {
  switch (kind) {
    case kinds.silu:
      return x / (1 + Math.exp(-x))
    case kinds.geluTanh:
      return x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))
    case kinds.geluErf:
      return (x * erfc(-x / Math.SQRT2)) / 2
    case kinds.reluSquared:
      return Math.max(x, 0) ** 2
    case kinds.relu:
      return Math.max(x, 0)
    case kinds.sigmoid:
      return 1 / (1 + Math.exp(-x))
    default:
      throw new Error(`no activation ${kind}`)
  }
}

export const activation = (x: Matrix, kind: number): Matrix => matrix(x.rows, x.cols, (row, c) => act(at(x, row, c), kind))

/** act(gate)⊙up. */
export const glu = (gate: Matrix, up: Matrix, kind: number): Matrix =>
  matrix(gate.rows, gate.cols, (row, c) => act(at(gate, row, c), kind) * at(up, row, c))

/** softcap·tanh(scale·x/softcap), or scale·x when softcap is 0. */
export const capped = (x: number, scale: number, softcap: number): number =>
  softcap === 0 ? scale * x : softcap * Math.tanh((scale * x) / softcap)
