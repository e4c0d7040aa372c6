import { strict as assert } from 'node:assert'
import { rowNorms, scaleColumns } from '../../reference/dora.ts'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { product } from '../../reference/gemm.ts'
import { at, close, equal, inner, matrix, plus, random, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, over, refuses, typed } from './command.ts'

const shapes = [
  [1, 1],
  [3, 17],
  [300, 70],
  [2, 20_000],
] as const

describe('scaleColumns', () => {
  for (const [rows, cols] of shapes)
    it(`[${rows},${cols}], in place as well`, async () => {
      const [x, w, bias, add] = [random(rows, cols, 1), random(1, cols, 2), random(1, cols, 3, 1, 'bf16'), random(rows, cols, 4)]
      const operands = [f32(x), f32(w), typed(bias, 'bf16'), f32(add)]
      const [y] = await compute('scaleColumns', [blank(rows, cols), ...operands], { floats: [0.5] })
      close(y!, scaleColumns(x, w, 0.5, bias, add), 2e-7, 'y')
      const [bare] = await compute('scaleColumns', [blank(rows, cols), f32(x), f32(w), undefined, undefined], { floats: [-2] })
      close(bare!, scaleColumns(x, w, -2), 2e-7, 'without bias and add')
      const first = [f32(x)]
      const [inPlace] = await compute('scaleColumns', [...first, over(first, 0), ...operands.slice(1)], { floats: [0.5] })
      equal(inPlace!, y!, 'y in the memory of x')
      const sum = [f32(add)]
      const [onto] = await compute('scaleColumns', [...sum, f32(x), f32(w), typed(bias, 'bf16'), over(sum, 0)], { floats: [0.5] })
      equal(onto!, y!, 'y in the memory of add')
    })

  it('refuses another width', async () => {
    await refuses(
      'scaleColumns',
      [blank(2, 3), f32(random(2, 3, 1)), f32(random(1, 4, 2)), undefined, undefined],
      { floats: [1] },
      /w is f32\[1,4\], expected \[1,3\]/,
    )
  })
})

describe('scaleColumnsGrad', () => {
  for (const [rows, cols] of shapes)
    it(`[${rows},${cols}] against finite differences`, async () => {
      const [x, dy, m, norm] = [
        random(rows, cols, 1),
        random(rows, cols, 2),
        random(1, cols, 3),
        matrix(1, cols, (_, c) => Math.fround(0.5 + (c % 7) / 3)),
      ]
      const gain = matrix(1, cols, (_, c) => Math.fround(at(m, 0, c) / at(norm, 0, c)))
      const start = random(1, cols, 4)
      const [dx, dm] = await compute('scaleColumnsGrad', [blank(rows, cols), f32(start), f32(dy), f32(x), f32(gain), f32(norm)], {
        floats: [0.5],
      })
      const few =
        cols > 1000
          ? undefined
          : finiteDifferences(
              (v) =>
                inner(
                  scaleColumns(
                    x,
                    matrix(1, cols, (_, c) => at(v, 0, c) / at(norm, 0, c)),
                    0.5,
                  ),
                  dy,
                ),
              m,
            )
      const exact =
        few ??
        matrix(1, cols, (_, c) =>
          Array.from({ length: rows }, (_, r) => (0.5 * at(dy, r, c) * at(x, r, c)) / at(norm, 0, c)).reduce((s, v) => s + v, 0),
        )
      close(dm!, plus(start, exact), 1e-6, 'dm')
      close(dx!, scaleColumns(dy, gain, 0.5), 2e-7, 'dx')
      const owner = [f32(dy)]
      const [inPlace, same] = await compute(
        'scaleColumnsGrad',
        [...owner, f32(start), over(owner, 0), f32(x), f32(gain), f32(norm)],
        { floats: [0.5] },
      )
      equal(inPlace!, dx!, 'dx in the memory of dy')
      equal(same!, dm!, 'dm then')
    })

  it('leaves the magnitude of a row without length alone', async () => {
    const [, dm] = await compute(
      'scaleColumnsGrad',
      [blank(2, 1), f32(random(1, 1, 1)), f32(random(2, 1, 2)), f32(random(2, 1, 3)), f32(matrix(1, 1)), f32(matrix(1, 1))],
      { floats: [1] },
    )
    equal(dm!, random(1, 1, 1), 'dm')
  })
})

describe('rowSquares', () => {
  for (const dtype of ['f32', 'bf16', 'f16'] as const)
    it(`of ${dtype}`, async () => {
      for (const [rows, cols] of [
        [1, 1],
        [5, 70],
        [3, 5000],
      ] as const) {
        const x = random(rows, cols, 1, 1, dtype)
        const [out] = await compute('rowSquares', [blank(1, rows), typed(x, dtype)])
        close(
          out!,
          matrix(1, rows, (_, r) =>
            Array.from({ length: cols }, (_, c) => at(x, r, c) ** 2).reduce((sum, value) => sum + value, 0),
          ),
          6e-8,
          'out',
        )
      }
    })
})

describe('doraNorm', () => {
  const [outputs, inputs] = [37, 120]
  const operands = (w: Matrix, a: Matrix, b: Matrix, m: Matrix) => [
    f32(
      matrix(1, w.rows, (_, o) =>
        Array.from({ length: w.cols }, (_, c) => at(w, o, c) ** 2).reduce((sum, value) => sum + value, 0),
      ),
    ),
    f32(m),
    f32(b),
    f32(product(a, w, 0)),
    f32(product(a, a, 0)),
  ]

  for (const rank of [1, 5, 64])
    it(`rank ${rank}: the norm of the sum, which is never made`, async () => {
      const [w, a, b, m] = [random(outputs, inputs, 1), random(rank, inputs, 2), random(outputs, rank, 3), random(1, outputs, 4)]
      const expected = rowNorms(w, a, b, 0.7)
      const [gain, norm] = await compute('doraNorm', [blank(1, outputs), blank(1, outputs), ...operands(w, a, b, m)], {
        floats: [0.7],
      })
      close(norm!, expected, 3e-7, 'norm')
      close(
        gain!,
        matrix(1, outputs, (_, o) => at(m, 0, o) / at(expected, 0, o)),
        3e-7,
        'gain',
      )
    })

  it('a magnitude that is the norm gives a gain of exactly 1', async () => {
    const [w, a, b] = [random(outputs, inputs, 1), random(3, inputs, 2), random(outputs, 3, 3)]
    const [, norm] = await compute(
      'doraNorm',
      [blank(1, outputs), blank(1, outputs), ...operands(w, a, b, random(1, outputs, 4))],
      { floats: [2] },
    )
    const [gain] = await compute('doraNorm', [blank(1, outputs), blank(1, outputs), ...operands(w, a, b, norm!)], { floats: [2] })
    equal(
      gain!,
      matrix(1, outputs, () => 1),
      'gain',
    )
  })

  it('where adapter and weight cancel: within the bound, and never NaN', async () => {
    const [a, b] = [random(4, inputs, 2), random(outputs, 4, 3)]
    // W is −B·A and a thousandth of something else in the first half of the rows, nothing but −B·A in the second.
    const rest = random(outputs, inputs, 5)
    const delta = product(b, a, 1)
    const w = matrix(outputs, inputs, (o, c) => Math.fround((o < 18 ? 1e-3 * at(rest, o, c) : 0) - at(delta, o, c)))
    const [gain, norm] = await compute(
      'doraNorm',
      [blank(1, outputs), blank(1, outputs), ...operands(w, a, b, random(1, outputs, 4))],
      { floats: [1] },
    )
    const expected = rowNorms(w, a, b, 1)
    const sizes = rowNorms(w, matrix(4, inputs), b, 1)
    for (let o = 0; o < outputs; ++o) {
      const [is, should, size] = [at(norm!, 0, o), at(expected, 0, o), at(sizes, 0, o)]
      assert.ok(Math.abs(is ** 2 - should ** 2) <= 2 ** -21 * 2 * size ** 2, `row ${o}: ${is}, expected ${should}`)
      assert.ok(is > 0 && Number.isFinite(at(gain!, 0, o)))
    }
  })

  it('rows without any length have no gain', async () => {
    const [gain, norm] = await compute(
      'doraNorm',
      [blank(1, 2), blank(1, 2), f32(matrix(1, 2)), f32(matrix(1, 2)), f32(matrix(2, 3)), f32(matrix(3, 2)), f32(matrix(3, 3))],
      { floats: [1] },
    )
    equal(gain!, matrix(1, 2), 'gain')
    equal(norm!, matrix(1, 2), 'norm')
  })

  it('refuses products of another rank', async () => {
    const list = [blank(1, 2), blank(1, 2), blank(1, 2), blank(1, 2), blank(2, 3), blank(4, 2), blank(3, 3)]
    await refuses('doraNorm', list, { floats: [1] }, /doraNorm: wa is f32\[4,2\], expected \[3,2\]/)
  })
})
