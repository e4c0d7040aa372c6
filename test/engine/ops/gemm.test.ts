import { strict as assert } from 'node:assert'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { product } from '../../reference/gemm.ts'
import { at, close, inner, matrix, plus, random, relativeError, roundTo, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, refuses, typed, type Operand } from './command.ts'

const modes = { forward: 0, inputGradient: 1, weightGradient: 2 } as const
const shapes = [
  [1, 1, 1],
  [1, 33, 17],
  [3, 17, 5],
  [37, 70, 129],
  [70, 130, 300],
] as const

function operandsOf(
  mode: number,
  m: number,
  n: number,
  k: number,
  dtype: 'f32' | 'bf16' | 'f16' = 'f32',
): { a: Matrix; b: Matrix } {
  const a = mode === 2 ? random(k, m, 1) : random(m, k, 1)
  const b = mode === 0 ? random(n, k, 2, 1, dtype) : random(k, n, 2, 1, dtype)
  return { a, b }
}

const numbers = (
  mode: number,
  options: { accumulate?: boolean; precision?: number; alpha?: number; columns?: number[]; alphas?: number[] } = {},
) => ({
  ints: [mode, options.accumulate === true ? 1 : 0, options.precision ?? 0, ...(options.columns ?? [])],
  floats: [options.alpha ?? 1, ...(options.alphas ?? [])],
})

describe('gemm', () => {
  for (const [name, mode] of Object.entries(modes))
    for (const [m, n, k] of shapes)
      it(`${name} ${m}x${n}x${k}, alone and accumulating`, async () => {
        for (const dtype of ['f32', 'bf16', 'f16'] as const) {
          const { a, b } = operandsOf(mode, m, n, k, dtype)
          const exact = product(a, b, mode)
          const [c] = await compute('gemm', [blank(m, n), f32(a), typed(b, dtype), undefined, undefined], numbers(mode))
          close(c!, exact, 1e-6, `c, ${dtype}`)
          const start = random(m, n, 3)
          const [sum] = await compute(
            'gemm',
            [f32(start), f32(a), typed(b, dtype), undefined, undefined],
            numbers(mode, { accumulate: true, alpha: -0.5 }),
          )
          const scaled = matrix(m, n, (r, col) => -0.5 * at(exact, r, col))
          close(sum!, plus(start, scaled), 1e-6, `accumulated c, ${dtype}`)
        }
      })

  it('adds bias, a residual and low-rank pairs in the same pass', async () => {
    const [m, n, k, rank] = [9, 50, 33, 4]
    const columns = [0, 20]
    const widths = [20, 30]
    for (const mode of [0, 1]) {
      const { a, b } = operandsOf(mode, m, n, k)
      const bias = random(1, n, 4, 1, 'bf16')
      const residual = random(m, n, 5)
      const lowA = widths.map((_, j) => random(m, rank, 6 + j))
      const lowB = widths.map((width, j) => (mode === 0 ? random(width, rank, 8 + j) : random(rank, width, 8 + j)))
      const expected = matrix(m, n, (row, col) => {
        const j = col < 20 ? 0 : 1
        const low = at(product(lowA[j]!, lowB[j]!, mode), row, col - columns[j]!)
        return at(bias, 0, col) + at(residual, row, col) + [2, -1][j]! * low
      })
      const pairs = lowA.flatMap((a, j) => [f32(a), f32(lowB[j]!)])
      const operands: Operand[] = [blank(m, n), f32(a), f32(b), typed(bias, 'bf16'), f32(residual), ...pairs]
      const [c] = await compute('gemm', operands, numbers(mode, { columns, alphas: [2, -1] }))
      close(c!, plus(product(a, b, mode), expected), 1e-6, 'c')
    }
  })

  it('has the gradients of a linear layer', async () => {
    const x = random(5, 7, 1)
    const w = random(9, 7, 2)
    const dy = random(5, 9, 3)
    const [dx] = await compute('gemm', [blank(5, 7), f32(dy), f32(w), undefined, undefined], numbers(modes.inputGradient))
    close(
      dx!,
      finiteDifferences((v) => inner(product(v, w, 0), dy), x),
      1e-6,
      'dx',
    )
    const [dw] = await compute('gemm', [blank(9, 7), f32(dy), f32(x), undefined, undefined], numbers(modes.weightGradient))
    close(
      dw!,
      finiteDifferences((v) => inner(product(x, v, 0), dy), w),
      1e-6,
      'dw',
    )
  })

  it('rounds both operands to bf16 when told to, and nothing else', async () => {
    const rounded = (m: Matrix) => matrix(m.rows, m.cols, (r, c) => roundTo('bf16', at(m, r, c)))
    for (const mode of Object.values(modes)) {
      const { a, b } = operandsOf(mode, 37, 70, 129)
      const [c] = await compute('gemm', [blank(37, 70), f32(a), f32(b), undefined, undefined], numbers(mode, { precision: 1 }))
      close(c!, product(rounded(a), rounded(b), mode), 2e-6, 'c')
      assert.ok(relativeError(c!, product(a, b, mode)) > 1e-4)
    }
  })

  it('refuses operands that do not fit', async () => {
    await refuses('gemm', [blank(2, 3), f32(random(2, 4, 1)), f32(random(3, 5, 2)), undefined, undefined], numbers(0), /gemm: /)
  })
})
