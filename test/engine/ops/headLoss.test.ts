import { strict as assert } from 'node:assert'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { headLoss } from '../../reference/headLoss.ts'
import { at, close, column, inner, matrix, plus, random, sum, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, i32, refuses, typed } from './command.ts'

interface Case {
  readonly rows: number
  readonly hidden: number
  readonly vocabulary: number
  readonly chunk: number
  readonly logitScale: number
  readonly softcap: number
  readonly dtype: 'f32' | 'bf16'
}

const cases: Case[] = [
  { rows: 1, hidden: 5, vocabulary: 7, chunk: 1, logitScale: 1, softcap: 0, dtype: 'f32' },
  { rows: 7, hidden: 17, vocabulary: 33, chunk: 3, logitScale: 0.25, softcap: 0, dtype: 'bf16' },
  { rows: 5, hidden: 8, vocabulary: 40, chunk: 8, logitScale: 1, softcap: 2, dtype: 'f32' },
  { rows: 6, hidden: 9, vocabulary: 21, chunk: 2, logitScale: 1.5, softcap: 3, dtype: 'bf16' },
]

describe('headLoss', () => {
  const setting = ({ rows, hidden, vocabulary, dtype }: Case) => ({
    h: random(rows, hidden, 1, 2),
    w: random(vocabulary, hidden, 2, 1, dtype),
    labels: Array.from({ length: rows }, (_, row) => (row * 5) % vocabulary),
    weights: matrix(rows, 1, (row) => (row === 1 ? 0 : Math.fround(0.1 * (row + 1)))),
  })

  for (const c of cases)
    it(`${c.rows} rows by ${c.chunk}, ${c.vocabulary} tokens, scale ${c.logitScale}, softcap ${c.softcap}, ${c.dtype} weight`, async () => {
      const { h, w, labels, weights } = setting(c)
      const inputs = [blank(c.chunk, c.vocabulary), undefined, f32(h), typed(w, c.dtype), i32(labels), f32(weights)]
      const numbers = { ints: [0], floats: [c.logitScale, c.softcap] }
      const expected = headLoss(h, w, labels, c.logitScale, c.softcap)
      const [alone] = await compute('headLoss', [blank(c.rows, 1), undefined, undefined, ...inputs], numbers)
      close(alone!, expected, 5e-7, 'nll alone')

      const start = random(c.vocabulary, c.hidden, 3)
      const [nll, dH, dW] = await compute('headLoss', [blank(c.rows, 1), blank(c.rows, c.hidden), f32(start), ...inputs], numbers)
      close(nll!, alone!, 0, 'nll with gradients')
      const loss = (h: Matrix, w: Matrix) => inner(headLoss(h, w, labels, c.logitScale, c.softcap), weights)
      close(
        dH!,
        finiteDifferences((v) => loss(v, w), h),
        1e-6,
        'dH',
      )
      close(
        dW!,
        plus(
          start,
          finiteDifferences((v) => loss(h, v), w),
        ),
        1e-6,
        'dW',
      )
    })

  it('keeps its precision over a large vocabulary', async () => {
    const h = random(3, 4, 5, 3)
    const w = random(70001, 4, 6, 3)
    const labels = [0, 70000, 123]
    const inputs = [blank(2, 70001), undefined, f32(h), f32(w), i32(labels), f32(column([1, 1, 1]))]
    const [nll] = await compute('headLoss', [blank(3, 1), undefined, undefined, ...inputs], { ints: [0], floats: [1, 0] })
    close(nll!, headLoss(h, w, labels, 1, 0), 2e-7, 'nll')
  })

  it('rounds to bf16 in the matrix products only when told to', async () => {
    const c = cases[1]!
    const { h, w, labels, weights } = setting(c)
    const operands = [
      blank(7, 1),
      blank(7, 17),
      undefined,
      blank(3, 33),
      undefined,
      f32(h),
      typed(w, 'bf16'),
      i32(labels),
      f32(weights),
    ]
    const [nll, dH] = await compute('headLoss', operands, { ints: [1], floats: [0.25, 0] })
    close(nll!, headLoss(h, w, labels, 0.25, 0), 1e-2, 'nll')
    const exact = finiteDifferences((v) => inner(headLoss(v, w, labels, 0.25, 0), weights), h)
    close(dH!, exact, 1e-2, 'dH')
    assert.ok(sum(matrix(7, 17, (r, k) => Math.abs(at(dH!, r, k) - at(exact, r, k)))) > 1e-5, 'bf16 leaves a trace')
  })

  it('adds a bias and its gradient', async () => {
    const { h, w, labels, weights } = setting(cases[0]!)
    const [rows, width, vocabulary] = [6, 9, 21]
    const [many, table, bias] = [random(rows, width, 7, 2), random(vocabulary, width, 8), random(1, vocabulary, 9)]
    const targets = Array.from({ length: rows }, (_, row) => (row * 5) % vocabulary)
    const shares = column([0.1, 0, 0.3, 0.2, 0.5, 0.4].map(Math.fround))
    // A bias is a weight on an input that is always 1.
    const widened = (b: Matrix) => matrix(vocabulary, width + 1, (row, k) => (k < width ? at(table, row, k) : at(b, 0, row)))
    const ones = matrix(rows, width + 1, (row, k) => (k < width ? at(many, row, k) : 1))
    const start = random(1, vocabulary, 10)
    const operands = [
      blank(rows, 1),
      blank(rows, width),
      undefined,
      blank(2, vocabulary),
      f32(start),
      f32(many),
      f32(table),
      i32(targets),
      f32(shares),
      f32(bias),
    ]
    const [nll, dH, , , dBias] = await compute('headLoss', operands, { ints: [0], floats: [1, 0] })
    close(nll!, headLoss(ones, widened(bias), targets, 1, 0), 5e-7, 'nll')
    const loss = (b: Matrix) => inner(headLoss(ones, widened(b), targets, 1, 0), shares)
    close(dBias!, plus(start, finiteDifferences(loss, bias)), 1e-6, 'dBias')
    assert.equal(dH!.cols, width)
    await refuses(
      'headLoss',
      [
        blank(1, 1),
        undefined,
        undefined,
        blank(1, 7),
        undefined,
        f32(h),
        f32(w),
        i32(labels),
        f32(weights),
        f32(random(1, 7, 1)),
      ],
      { ints: [0], floats: [1, 2] },
      /without softcap/,
    )
  })

  it('refuses a label that is not in the vocabulary', async () => {
    const inputs = [blank(2, 3), undefined, f32(random(2, 4, 1)), f32(random(3, 4, 2)), i32([0, 3]), f32(column([1, 1]))]
    await refuses(
      'headLoss',
      [blank(2, 1), undefined, undefined, ...inputs],
      { ints: [0], floats: [1, 0] },
      /headLoss: labels\[1\] = 3 is not a row of w, which has 3 rows/,
    )
  })
})
