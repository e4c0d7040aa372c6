import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { close, column, equal, inner, random } from '../../reference/matrix.ts'
import { rope, ropeTable } from '../../reference/rope.ts'
import { blank, compute, f32, i32, over, refuses } from './command.ts'

const positions = [0, 1, 5, 4095, 131071, 2, 3]
const inverse = random(2, 9, 1, 1)
const table = [0, 1, 0, 1, 0, 1, 1]
const factor = [1, 1.25]

describe('ropeTable', () => {
  it('rounds the angle to fp32 before cos and sin, each row by its own table', async () => {
    const [cosSin] = await compute('ropeTable', [blank(7, 18), i32(positions), i32(table), f32(inverse), f32(column(factor))])
    close(cosSin!, ropeTable(positions, table, inverse, factor), 1e-7, 'cosSin')
  })

  it('refuses a table that does not exist', async () => {
    const operands = [blank(7, 18), i32(positions), i32([0, 0, 0, 2, 0, 0, 0]), f32(inverse), f32(column(factor))]
    await refuses('ropeTable', operands, {}, /ropeTable: table\[3\] = 2 is not a row of inverseFrequency, which has 2 rows/)
  })
})

describe('rope', () => {
  const cosSin = ropeTable(positions, table, inverse, factor)
  for (const interleaved of [false, true])
    for (const headDim of [18, 23])
      it(`turns ${headDim === 18 ? 'all' : 'the first'} columns of each head, ${interleaved ? 'neighbours' : 'halves'} paired`, async () => {
        const heads = 3
        const x = random(7, heads * headDim, 2)
        const ints = (inverse: boolean) => [heads, headDim, interleaved ? 1 : 0, inverse ? 1 : 0]
        const [y] = await compute('rope', [blank(7, x.cols), f32(x), f32(cosSin)], { ints: ints(false) })
        close(y!, rope(x, cosSin, heads, headDim, interleaved, false), 2e-7, 'y')
        const operands = [f32(x), f32(x), f32(cosSin)]
        const [inPlace] = await compute('rope', [operands[0], over(operands, 0), operands[2]], { ints: ints(false) })
        equal(inPlace!, y!, 'in place')

        const dy = random(7, x.cols, 3)
        const [dx] = await compute('rope', [blank(7, x.cols), f32(dy), f32(cosSin)], { ints: ints(true) })
        const numeric = finiteDifferences((v) => inner(rope(v, cosSin, heads, headDim, interleaved, false), dy), x)
        close(dx!, numeric, 1e-6, 'gradient')
      })

  it('runs many heads and rows', async () => {
    const rows = 90
    const many = ropeTable(
      Array.from({ length: rows }, (_, i) => i),
      Array.from({ length: rows }, () => 0),
      random(1, 32, 4),
      [1],
    )
    const x = random(rows, 6 * 64, 5)
    const [y] = await compute('rope', [blank(rows, x.cols), f32(x), f32(many)], { ints: [6, 64, 0, 0] })
    close(y!, rope(x, many, 6, 64, false, false), 2e-7, 'y')
  })

  it('refuses a table wider than a head', async () => {
    await refuses(
      'rope',
      [blank(7, 16), f32(random(7, 16, 1)), f32(cosSin)],
      { ints: [1, 16, 0, 0] },
      /rope: cosSin is f32\[7,18\], expected .* at most 16/,
    )
  })
})
