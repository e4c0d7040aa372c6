import { strict as assert } from 'node:assert'
import { equal, matrix, random, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, refuses, typed } from './command.ts'

const list = (values: readonly number[]): Matrix => matrix(1, values.length, (_, column) => values[column]!)
const f64 = (...values: number[]) => typed(list(values), 'f64')

describe('scaleLoss', () => {
  it('multiplies by the loss scale, which may change between runs', async () => {
    for (const [rows, cols] of [
      [1, 1],
      [37, 1],
      [3, 20_001],
    ] as const) {
      const x = random(rows, cols, 1)
      const [y] = await compute('scaleLoss', [blank(rows, cols), f32(x), f64(4096, 1, 2, 3)])
      equal(
        y!,
        matrix(rows, cols, (row, column) => 4096 * x.data[row * cols + column]!),
        `${rows} × ${cols}`,
      )
    }
  })
})

describe('updateScale', () => {
  interface Case {
    readonly scaling: readonly [number, number, number, number]
    readonly squares?: number
    readonly loss?: number
    readonly maxNorm?: number
  }

  /** Rows of two numbers, the first one for 3 skipped steps. */
  const choices = [3, 10, 11, 20, 21, 30, 31]
  async function update({ scaling, squares = 0, loss = 1, maxNorm = 0 }: Case) {
    const [scalars, after] = await compute(
      'updateScale',
      [f64(7, 7, 7, 7), f64(...scaling), f64(squares), f64(loss), f64(...choices)],
      { ints: [4, 2], floats: [maxNorm] },
    )
    return { scalars: [...scalars!.data], scaling: [...after!.data] }
  }

  it('takes the scale off the gradient, clips by the norm without it, and picks the row of the skipped steps', async () => {
    const { scalars, scaling } = await update({ scaling: [8, 1, 4, 0], squares: (8 * 10) ** 2, maxNorm: 2 })
    assert.ok(Math.abs(scalars[0]! - 2 / (10 + 1e-6) / 8) < 1e-15)
    assert.deepEqual(scalars.slice(1), [20, 21, 7])
    assert.deepEqual(scaling, [8, 2, 4, 8])
    assert.equal((await update({ scaling: [8, 1, 4, 0], squares: 1, maxNorm: 2 })).scalars[0], 1 / 8)
    assert.equal((await update({ scaling: [8, 1, 4, 0], squares: 1e6 })).scalars[0], 1 / 8)
    assert.deepEqual((await update({ scaling: [8, 1, 99, 0] })).scalars.slice(1, 3), [30, 31], 'the last row there is')
  })

  it('doubles after an interval of good steps, but not beyond fp32', async () => {
    assert.deepEqual((await update({ scaling: [8, 3, 4, 0] })).scaling, [16, 0, 4, 8])
    assert.deepEqual((await update({ scaling: [2 ** 127, 3, 4, 0] })).scaling, [2 ** 127, 0, 4, 2 ** 127])
  })

  it('halves and marks a spoilt step', async () => {
    for (const [squares, loss] of [
      [NaN, 1],
      [Infinity, 1],
      [1, NaN],
      [1, Infinity],
    ] as const) {
      const { scalars, scaling } = await update({ scaling: [8, 3, 4, 0], squares, loss })
      assert.ok(Number.isNaN(scalars[0]))
      assert.deepEqual(scaling, [4, 0, 5, 8])
    }
  })

  it('refuses an interval of nothing', async () => {
    await refuses(
      'updateScale',
      [f64(0, 0, 0), f64(1, 0, 0, 0), f64(1), f64(1), f64(...choices)],
      { ints: [0, 2], floats: [1] },
      /interval and width are positive/,
    )
  })
})
