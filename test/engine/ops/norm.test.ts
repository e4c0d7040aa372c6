import { strict as assert } from 'node:assert'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { at, close, inner, matrix, plus, random, relativeError, sum, type Matrix } from '../../reference/matrix.ts'
import { layerNorm, rmsNorm } from '../../reference/norm.ts'
import { blank, compute, f32, over, refuses, typed } from './command.ts'

const eps = 1e-5
const shapes = [
  { rows: 1, cols: 17, groups: 1, shared: false },
  { rows: 3, cols: 48, groups: 4, shared: true },
  { rows: 5, cols: 34, groups: 2, shared: false },
  { rows: 70, cols: 300, groups: 1, shared: false },
]

describe('rmsNorm', () => {
  for (const { rows, cols, groups, shared } of shapes)
    for (const dtype of ['f32', 'bf16', 'f16'] as const)
      it(`[${rows},${cols}] in ${groups} groups, ${dtype} weight`, async () => {
        const x = random(rows, cols, 1, 3)
        const w = random(1, shared ? cols / groups : cols, 2, 1, dtype)
        for (const plusOne of [false, true]) {
          const expected = rmsNorm(x, w, groups, plusOne, eps)
          const [y, rstd] = await compute('rmsNorm', [blank(rows, cols), blank(rows, groups), f32(x), typed(w, dtype)], {
            ints: [groups, plusOne ? 1 : 0],
            floats: [eps],
          })
          close(y!, expected.y, 2e-7, 'y')
          close(rstd!, expected.rstd, 1e-7, 'rstd')
        }
      })

  it('keeps its precision on a long row', async () => {
    const x = random(2, 5000, 3)
    const w = random(1, 5000, 4)
    const [y] = await compute('rmsNorm', [blank(2, 5000), blank(2, 1), f32(x), f32(w)], { ints: [1, 0], floats: [1e-6] })
    close(y!, rmsNorm(x, w, 1, false, 1e-6).y, 2e-7, 'y')
  })

  it('refuses groups that do not divide the row, and a weight of another width', async () => {
    const operands = (cols: number) => [blank(2, 10), blank(2, 3), f32(random(2, 10, 1)), f32(random(1, cols, 2))]
    await refuses(
      'rmsNorm',
      operands(10),
      { ints: [3, 0], floats: [eps] },
      /rmsNorm: 3 groups do not divide x, which is f32\[2,10\]/,
    )
    await refuses(
      'rmsNorm',
      [blank(2, 10), blank(2, 1), ...operands(7).slice(2)],
      { ints: [1, 0], floats: [eps] },
      /w is f32\[1,7\], expected 10/,
    )
  })
})

describe('rmsNormGrad', () => {
  for (const { rows, cols, groups, shared } of shapes)
    it(`[${rows},${cols}] in ${groups} groups`, async () => {
      const x = random(rows, cols, 1, 2)
      const w = random(1, shared ? cols / groups : cols, 2)
      const dy = random(rows, cols, 3)
      const plusOne = groups > 1
      const { rstd } = rmsNorm(x, w, groups, plusOne, eps)
      const start = random(rows, cols, 5)
      const startW = random(1, w.cols, 6)
      const inputs = [f32(dy), f32(x), f32(w), f32(rstd)]
      const ints = (accumulate: boolean) => [groups, plusOne ? 1 : 0, accumulate ? 1 : 0]
      const [dx, dw] = await compute('rmsNormGrad', [blank(rows, cols), f32(startW), ...inputs], { ints: ints(false) })
      const [added] = await compute('rmsNormGrad', [f32(start), undefined, ...inputs], { ints: ints(true) })
      close(added!, plus(start, dx!), 2e-7, 'accumulated dx')
      const aliased = [undefined, f32(startW), ...inputs]
      const [inPlace, inPlaceW] = await compute('rmsNormGrad', placeOver(aliased), { ints: ints(false) })
      close(inPlace!, dx!, 0, 'dx in the memory of dy')
      close(inPlaceW!, dw!, 0, 'dw beside a dx in the memory of dy')
      if (rows > 10) {
        close(dw!, plus(startW, sumOver(dy, x, rstd, w.cols, groups)), 5e-7, 'dw')
        return
      }
      const loss = (x: Matrix, w: Matrix) => inner(rmsNorm(x, w, groups, plusOne, eps).y, dy)
      close(
        dx!,
        finiteDifferences((v) => loss(v, w), x),
        1e-6,
        'dx',
      )
      close(
        matrix(1, w.cols, (_, c) => at(dw!, 0, c) - at(startW, 0, c)),
        finiteDifferences((v) => loss(x, v), w),
        1e-6,
        'dw',
      )
    })
})

/** The operands with dx in the memory of dy. */
function placeOver(operands: (ReturnType<typeof f32> | undefined)[], dyAt = 2): (ReturnType<typeof f32> | undefined)[] {
  // Memory is handed out in operand order, so the shared place is dx's and dy points to it.
  const dy = operands[dyAt]!
  const swapped = [...operands]
  swapped[0] = dy
  swapped[dyAt] = over(swapped, 0)
  return swapped
}

/** Σ dy⊙x·r over rows, and over groups when these share the weight. */
function sumOver(dy: Matrix, x: Matrix, rstd: Matrix, cols: number, groups: number): Matrix {
  const width = x.cols / groups
  return matrix(1, cols, (_, c) => {
    let total = 0
    for (let row = 0; row < x.rows; row++)
      for (let k = c; k < x.cols; k += cols) total += at(dy, row, k) * at(x, row, k) * at(rstd, row, Math.floor(k / width))
    return total
  })
}

describe('layerNorm', () => {
  for (const { rows, cols, groups, shared } of shapes)
    it(`[${rows},${cols}] in ${groups} groups, with and without bias`, async () => {
      const x = random(rows, cols, 1, 3)
      const w = random(1, shared ? cols / groups : cols, 2, 1, 'bf16')
      const b = random(1, w.cols, 3)
      for (const bias of [b, undefined]) {
        const expected = layerNorm(x, w, bias, groups, eps)
        const operands = [
          blank(rows, cols),
          blank(rows, 2 * groups),
          f32(x),
          typed(w, 'bf16'),
          bias === undefined ? undefined : f32(bias),
        ]
        const [y, stats] = await compute('layerNorm', operands, { ints: [groups], floats: [eps] })
        close(y!, expected.y, 3e-7, 'y')
        close(stats!, expected.stats, 2e-7, 'stats')
      }
    })

  it('does without a weight', async () => {
    const [x, dy] = [random(4, 34, 1, 3), random(4, 34, 2)]
    const ones = matrix(1, 34, () => 1)
    const [y, stats] = await compute('layerNorm', [blank(4, 34), blank(4, 2), f32(x), undefined, undefined], {
      ints: [1],
      floats: [eps],
    })
    close(y!, layerNorm(x, ones, undefined, 1, eps).y, 3e-7, 'y')
    const [dx] = await compute('layerNormGrad', [blank(4, 34), undefined, undefined, f32(dy), f32(x), undefined, f32(stats!)], {
      ints: [1, 0],
    })
    close(
      dx!,
      finiteDifferences((v) => inner(layerNorm(v, ones, undefined, 1, eps).y, dy), x),
      1e-6,
      'dx',
    )
  })

  it('keeps its precision far from zero', async () => {
    const noise = random(2, 1030, 9)
    const x = matrix(2, 1030, (row, c) => Math.fround(1000 + at(noise, row, c)))
    const w = random(1, 1030, 4)
    const [y] = await compute('layerNorm', [blank(2, 1030), blank(2, 2), f32(x), f32(w), undefined], { ints: [1], floats: [eps] })
    assert.ok(relativeError(y!, layerNorm(x, w, undefined, 1, eps).y) < 1e-4) // the mean of such a row is rounded to 6e-5
  })
})

describe('layerNormGrad', () => {
  for (const { rows, cols, groups, shared } of shapes.slice(0, 3))
    it(`[${rows},${cols}] in ${groups} groups`, async () => {
      const x = random(rows, cols, 1, 2)
      const w = random(1, shared ? cols / groups : cols, 2)
      const b = random(1, w.cols, 4)
      const dy = random(rows, cols, 3)
      const { stats } = layerNorm(x, w, b, groups, eps)
      const inputs = [f32(dy), f32(x), f32(w), f32(stats)]
      const zeros = f32(matrix(1, w.cols))
      const [dx, dw, db] = await compute('layerNormGrad', [blank(rows, cols), zeros, zeros, ...inputs], { ints: [groups, 0] })
      const loss = (x: Matrix, w: Matrix, b: Matrix) => inner(layerNorm(x, w, b, groups, eps).y, dy)
      close(
        dx!,
        finiteDifferences((v) => loss(v, w, b), x),
        2e-6,
        'dx',
      )
      close(
        dw!,
        finiteDifferences((v) => loss(x, v, b), w),
        1e-6,
        'dw',
      )
      close(
        db!,
        finiteDifferences((v) => loss(x, w, v), b),
        1e-6,
        'db',
      )
      const start = random(rows, cols, 5)
      const [added] = await compute('layerNormGrad', [f32(start), undefined, undefined, ...inputs], { ints: [groups, 1] })
      close(added!, plus(start, dx!), 2e-7, 'accumulated dx')
      const [inPlace] = await compute('layerNormGrad', placeOver([undefined, undefined, undefined, ...inputs], 3), {
        ints: [groups, 0],
      })
      close(inPlace!, dx!, 0, 'dx in the memory of dy')
    })

  it('sums many rows', async () => {
    const x = random(700, 70, 1)
    const dy = random(700, 70, 2)
    const w = random(1, 70, 3)
    const { stats } = layerNorm(x, w, undefined, 1, eps)
    const zeros = f32(matrix(1, 70))
    const [, , db] = await compute('layerNormGrad', [blank(700, 70), zeros, zeros, f32(dy), f32(x), f32(w), f32(stats)], {
      ints: [1, 0],
    })
    close(
      db!,
      matrix(1, 70, (_, c) => sum(matrix(700, 1, (row) => at(dy, row, c)))),
      1e-6,
      'db',
    )
  })
})
