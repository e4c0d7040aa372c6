import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { at, close, equal, inner, matrix, plus, random, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, i32, over, refuses, typed } from './command.ts'

const ids = [4, 0, 4, 2, 4]
const embed = (table: Matrix, ids: readonly number[], scale: number) =>
  matrix(ids.length, table.cols, (row, c) => scale * at(table, ids[row]!, c))

describe('embed', () => {
  for (const dtype of ['f32', 'bf16', 'f16'] as const)
    it(`from a ${dtype} table`, async () => {
      for (const cols of [1, 17, 300]) {
        const table = random(6, cols, 1, 1, dtype)
        const [out] = await compute('embed', [blank(5, cols), i32(ids), typed(table, dtype)], { floats: [1] })
        equal(out!, embed(table, ids, 1), 'unscaled')
        const [scaled] = await compute('embed', [blank(5, cols), i32(ids), typed(table, dtype)], { floats: [50.5] })
        close(scaled!, embed(table, ids, 50.5), 6e-8, 'scaled')
      }
    })

  it('refuses a token that the table does not have', async () => {
    const operands = [blank(2, 3), i32([0, -1]), f32(random(4, 3, 1))]
    await refuses('embed', operands, { floats: [1] }, /embed: ids\[1\] = -1 is not a row of table, which has 4 rows/)
  })
})

describe('embedGrad', () => {
  it('adds the rows of a token that stands more than once', async () => {
    const table = random(6, 70, 1)
    const dOut = random(5, 70, 2)
    const [dTable] = await compute('embedGrad', [f32(table), i32(ids), f32(dOut)], { floats: [0.5] })
    close(
      dTable!,
      plus(
        table,
        finiteDifferences((v) => inner(embed(v, ids, 0.5), dOut), table),
      ),
      1e-7,
      'dTable',
    )
  })
})

describe('gatherRows', () => {
  it('picks rows, repeats allowed', async () => {
    const x = random(6, 17, 1)
    const [y] = await compute('gatherRows', [blank(5, 17), f32(x), i32(ids)])
    equal(y!, embed(x, ids, 1), 'y')
    await refuses('gatherRows', [blank(1, 17), f32(x), i32([6])], {}, /gatherRows: index\[0\] = 6 is not a row of x/)
    await refuses('gatherRows', [blank(1, 17), f32(x), i32([-2])], {}, /gatherRows: index\[0\] = -2 is not a row of x/)
  })

  it('gives zeros for −1', async () => {
    const x = random(6, 17, 1)
    const [y] = await compute('gatherRows', [blank(3, 17), f32(x), i32([2, -1, 5])])
    equal(
      y!,
      matrix(3, 17, (row, c) => (row === 1 ? 0 : at(x, row === 0 ? 2 : 5, c))),
      'y',
    )
  })
})

describe('scatterRows', () => {
  const index = [5, 0, 3]
  const x = random(3, 17, 1)
  const scattered = matrix(6, 17, (row, c) => (index.includes(row) ? at(x, index.indexOf(row), c) : 0))

  it('sets rows and clears the others', async () => {
    const [y] = await compute('scatterRows', [blank(6, 17), f32(x), i32(index)], { ints: [0] })
    equal(y!, scattered, 'y')
  })

  it('skips −1', async () => {
    const [y] = await compute('scatterRows', [blank(6, 17), f32(x), i32([5, -1, 3])], { ints: [0] })
    equal(
      y!,
      matrix(6, 17, (row, c) => (row === 0 ? 0 : at(scattered, row, c))),
      'y',
    )
    const start = random(6, 17, 2)
    const [sum] = await compute('scatterRows', [f32(start), f32(x), i32([5, -1, 3])], { ints: [1] })
    close(
      sum!,
      plus(
        start,
        matrix(6, 17, (row, c) => (row === 0 ? 0 : at(scattered, row, c))),
      ),
      1e-7,
      'sum',
    )
  })

  it('adds to rows and leaves the others', async () => {
    const start = random(6, 17, 2)
    const [y] = await compute('scatterRows', [f32(start), f32(x), i32(index)], { ints: [1] })
    close(y!, plus(start, scattered), 1e-7, 'y')
  })
})

describe('storeRows', () => {
  it('writes rows into slots of a cache', async () => {
    const x = random(3, 40, 1)
    const cache = random(9, 40, 2)
    const slots = [7, 1, 8]
    const [after] = await compute('storeRows', [f32(cache), f32(x), i32(slots)])
    equal(
      after!,
      matrix(9, 40, (row, c) => (slots.includes(row) ? at(x, slots.indexOf(row), c) : at(cache, row, c))),
      'cache',
    )
    await refuses('storeRows', [f32(cache), f32(x), i32([0, 9, 1])], {}, /storeRows: slots\[1\] = 9 is not a row of cache/)
  })
})

describe('add', () => {
  for (const [rows, cols] of [
    [1, 1],
    [3, 17],
    [2, 20000],
  ] as const)
    it(`[${rows},${cols}], in place as well`, async () => {
      const a = random(rows, cols, 1)
      const b = random(rows, cols, 2)
      const combined = matrix(rows, cols, (r, c) => 0.5 * at(a, r, c) - 3 * at(b, r, c))
      const [y] = await compute('add', [blank(rows, cols), f32(a), f32(b)], { floats: [0.5, -3] })
      close(y!, combined, 1e-7, 'y')
      const first = [f32(a)]
      const [inPlace] = await compute('add', [...first, over(first, 0), f32(b)], { floats: [0.5, -3] })
      equal(inPlace!, y!, 'y in the memory of a')
      const second = [f32(b)]
      const [inPlaceB] = await compute('add', [...second, f32(a), over(second, 0)], { floats: [0.5, -3] })
      equal(inPlaceB!, y!, 'y in the memory of b')
      const [scaled] = await compute('add', [blank(rows, cols), f32(a), undefined], { floats: [0.5, 0] })
      equal(
        scaled!,
        matrix(rows, cols, (r, c) => 0.5 * at(a, r, c)),
        'one operand',
      )
    })
})

describe('columnSum', () => {
  for (const [rows, cols] of [
    [1, 1],
    [3, 17],
    [700, 130],
  ] as const)
    it(`[${rows},${cols}]`, async () => {
      const x = random(rows, cols, 1)
      const start = random(1, cols, 2)
      const [out] = await compute('columnSum', [f32(start), f32(x)], { floats: [-0.5] })
      const sums = matrix(
        1,
        cols,
        (_, c) => at(start, 0, c) - 0.5 * Array.from({ length: rows }, (_, r) => at(x, r, c)).reduce((s, v) => s + v, 0),
      )
      close(out!, sums, 3e-7, 'out')
    })
})
