import { strict as assert } from 'node:assert'
import { at, close, equal, floatFromBits, matrix, put, random, roundTo, type Matrix } from '../../reference/matrix.ts'
import { adamw } from '../../reference/optimizer.ts'
import { blank, compute, f32, refuses, typed } from './command.ts'

const shapes = [
  [1, 1],
  [3, 17],
  [2, 20001],
] as const

describe('adamw', () => {
  const settings = { rate: 0.003, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1 }
  const scalars = (t: number, gradientScale: number) =>
    typed(
      matrix(5, 1, (row) => [gradientScale, 1 - 0.9 ** t, 1 - 0.999 ** t, 1, settings.rate][row]!),
      'f64',
    )

  for (const [rows, cols] of shapes)
    it(`[${rows},${cols}] follows torch's steps`, async () => {
      let p = random(rows, cols, 1)
      let m: Matrix = matrix(rows, cols)
      let v: Matrix = matrix(rows, cols)
      const exact = [p, m, v].map((state) => ({ ...state, data: state.data.slice() }))
      for (let t = 1; t <= 3; t++) {
        const gradient = random(rows, cols, 10 + t)
        const numbers = { ints: [1], floats: [settings.beta1, settings.beta2, settings.eps, settings.weightDecay] }
        const after = await compute('adamw', [f32(p), f32(m), f32(v), f32(gradient), scalars(t, 0.5)], numbers)
        ;[p, m, v] = [after[0]!, after[1]!, after[2]!]
        for (let row = 0; row < rows; row++)
          for (let c = 0; c < cols; c++) {
            const [P, M, V] = exact.map((state) => at(state, row, c)) as [number, number, number]
            adamw(P, M, V, 0.5 * at(gradient, row, c), t, settings).forEach((value, i) => put(exact[i]!, row, c, value))
          }
      }
      close(p, exact[0]!, 2e-7, 'p')
      close(m, exact[1]!, 3e-7, 'm')
      close(v, exact[2]!, 3e-7, 'v')
    })

  it('refuses a group without a learning rate', async () => {
    const one = f32(matrix(1, 1))
    await refuses(
      'adamw',
      [one, one, one, one, scalars(1, 1)],
      { ints: [2], floats: [0.9, 0.999, 1e-8, 0] },
      /adamw: scalars is f64\[5,1\], expected f64\[6,1\]/,
    )
  })
})

describe('sumSquares', () => {
  it('sums in double precision, into its slot', async () => {
    for (const [rows, cols] of shapes) {
      const x = random(rows, cols, 1)
      const exact = x.data.reduce((total, value) => total + value * value, 0)
      const start = matrix(3, 1, (row) => row + 0.25)
      const [set] = await compute('sumSquares', [typed(start, 'f64'), f32(x)], { ints: [1, 0] })
      assert.ok(Math.abs(at(set!, 1, 0) - exact) <= 1e-13 * exact, `${at(set!, 1, 0)}, expected ${exact}`)
      assert.deepEqual([at(set!, 0, 0), at(set!, 2, 0)], [0.25, 2.25])
      const [added] = await compute('sumSquares', [typed(start, 'f64'), f32(x)], { ints: [1, 1] })
      assert.ok(Math.abs(at(added!, 1, 0) - exact - 1.25) <= 1e-13 * (exact + 1.25))
    }
  })
})

describe('fill', () => {
  it('sets every element of every type', async () => {
    for (const dtype of ['f32', 'bf16', 'f16', 'i32', 'f64', 'u8'] as const) {
      const [x] = await compute('fill', [typed(matrix(3, 17), dtype)], { floats: [3] })
      equal(
        x!,
        matrix(3, 17, () => 3),
        dtype,
      )
    }
    const [wide] = await compute('fill', [blank(2, 20000)], { floats: [-0.5] })
    equal(
      wide!,
      matrix(2, 20000, () => -0.5),
      'a row of many pieces',
    )
  })
})

describe('cast', () => {
  const types = ['f32', 'bf16', 'f16'] as const
  const edges = [
    0,
    -0,
    1,
    -1.5,
    65504,
    65519.996,
    65520,
    1e30,
    2 ** -14,
    2 ** -24,
    2 ** -25,
    3 * 2 ** -25,
    1.00390625,
    1.01171875,
    0.1,
  ]

  for (const from of [...types, 'i32'] as const)
    for (const to of types)
      it(`${from} to ${to} rounds to nearest even`, async () => {
        const values =
          from === 'i32'
            ? edges.map((_, i) => i * 777 - 3000)
            : edges.map((value) => roundTo(from, value)).filter(Number.isFinite)
        for (const x of [
          matrix(1, values.length, (_, c) => values[c]!),
          random(3, 17, 1, 100, from),
          random(2, 600, 2, 1, from),
        ]) {
          const [y] = await compute('cast', [typed(matrix(x.rows, x.cols), to), typed(x, from)])
          equal(
            y!,
            matrix(x.rows, x.cols, (r, c) => roundTo(to, at(x, r, c))),
            `${from} to ${to}`,
          )
        }
      })

  it('keeps infinities and NaN', async () => {
    const x = matrix(1, 4, (_, c) => [Infinity, -Infinity, NaN, floatFromBits(0x7f800001)][c]!)
    for (const to of types) {
      const [y] = await compute('cast', [typed(matrix(1, 4), to), f32(x)])
      assert.deepEqual([...y!.data], [Infinity, -Infinity, NaN, NaN], to)
    }
  })
})

/** A row of so many equal numbers in fp64. */
const doubles = (count: number, value: number) =>
  typed(
    matrix(1, count, () => value),
    'f64',
  )

describe('dot', () => {
  it('sums products in double precision', async () => {
    const [a, b] = [random(1, 20001, 1), random(1, 20001, 2)]
    const exact = a.data.reduce((sum, value, i) => sum + value * b.data[i]!, 0)
    const [set] = await compute('dot', [doubles(1, 0.25), f32(a), f32(b)], { ints: [0] })
    assert.ok(Math.abs(at(set!, 0, 0) - exact) <= 1e-12 * 20001)
    const [added] = await compute('dot', [doubles(1, 0.25), f32(a), f32(b)], { ints: [1] })
    assert.ok(Math.abs(at(added!, 0, 0) - exact - 0.25) <= 1e-12 * 20001)
  })
})

describe('clipScale', () => {
  const scale = async (squares: number, loss: number, maxNorm: number) => {
    const [scalars] = await compute('clipScale', [doubles(4, 7), doubles(1, squares), doubles(1, loss)], { floats: [maxNorm] })
    assert.deepEqual(
      [1, 2, 3].map((column) => at(scalars!, 0, column)),
      [7, 7, 7],
    )
    return at(scalars!, 0, 0)
  }

  it('clips by the norm as torch does, and marks a spoilt step', async () => {
    assert.ok(Math.abs((await scale(100, 1, 2)) - 2 / (10 + 1e-6)) < 1e-12)
    assert.equal(await scale(0.25, 1, 2), 1)
    assert.equal(await scale(100, 1, 0), 1)
    for (const [squares, loss] of [
      [NaN, 1],
      [Infinity, 1],
      [1, NaN],
      [1, Infinity],
    ] as const)
      assert.ok(Number.isNaN(await scale(squares, loss, 2)))
  })
})
