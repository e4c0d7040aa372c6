import { product } from '../../reference/gemm.ts'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { at, close, inner, matrix, plus, random, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, refuses, typed } from './command.ts'

const columns = (m: Matrix, from: number, count: number): Matrix => matrix(m.rows, count, (row, col) => at(m, row, from + col))
const rows = (m: Matrix, from: number, count: number): Matrix => matrix(count, m.cols, (row, col) => at(m, from + row, col))

interface Part {
  readonly column: number
  readonly width: number
}

const numbers = (parts: readonly Part[], alpha = 1) => ({
  ints: [0, ...parts.flatMap(({ column, width }) => [column, width])],
  floats: [alpha],
})

const groups: Readonly<Record<string, { n: number; out: number; rank: number; parts: readonly Part[] }>> = {
  'one part': { n: 37, out: 70, rank: 4, parts: [{ column: 0, width: 70 }] },
  'three parts': {
    n: 130,
    out: 96,
    rank: 16,
    parts: [
      { column: 0, width: 64 },
      { column: 64, width: 16 },
      { column: 80, width: 16 },
    ],
  },
  'parts with columns between them': {
    n: 5,
    out: 50,
    rank: 3,
    parts: [
      { column: 30, width: 11 },
      { column: 2, width: 7 },
    ],
  },
  'one row': { n: 1, out: 9, rank: 1, parts: [{ column: 0, width: 9 }] },
}

describe('loraGrad', () => {
  for (const [name, { n, out, rank, parts }] of Object.entries(groups))
    it(`passes dY to U and B: ${name}`, async () => {
      const width = parts.reduce((sum, part) => sum + part.width, 0)
      for (const dtype of ['f32', 'bf16', 'f16'] as const) {
        const [dy, u] = [random(n, out, 1), random(n, parts.length * rank, 2)]
        const [b, start] = [random(width, rank, 3, 1, dtype), random(width, rank, 4)]
        const operands = [blank(n, parts.length * rank), f32(start), f32(dy), f32(u), typed(b, dtype)]
        const [du, db] = await compute('loraGrad', operands, numbers(parts, -0.5))
        let row = 0
        parts.forEach((part, j) => {
          const [mine, low] = [columns(dy, part.column, part.width), rows(b, row, part.width)]
          const down = product(mine, low, 1)
          const added = product(mine, columns(u, j * rank, rank), 2)
          const wanted = { du: matrix(n, rank, (r, c) => -0.5 * at(down, r, c)), db: plus(rows(start, row, part.width), added) }
          close(columns(du!, j * rank, rank), wanted.du, 1e-6, `dU of part ${j}, ${dtype}`)
          close(rows(db!, row, part.width), wanted.db, 1e-6, `dB of part ${j}, ${dtype}`)
          row += part.width
        })
      }
    })

  it('is the gradient of Y = 0.5·U·Bᵀ', async () => {
    const [n, out, rank] = [6, 8, 3]
    const [dy, u, b] = [random(n, out, 1), random(n, rank, 2), random(out, rank, 3)]
    const y = (left: Matrix, right: Matrix): Matrix => product(left, right, 0)
    const scaled = matrix(n, rank, (r, c) => 0.5 * at(u, r, c))
    const operands = [blank(n, rank), f32(matrix(out, rank, () => 0)), f32(dy), f32(scaled), f32(b)]
    const [du, db] = await compute('loraGrad', operands, numbers([{ column: 0, width: out }], 0.5))
    close(
      du!,
      finiteDifferences((v) => 0.5 * inner(y(v, b), dy), u),
      1e-6,
      'dU',
    )
    close(
      db!,
      finiteDifferences((v) => 0.5 * inner(y(u, v), dy), b),
      1e-6,
      'dB',
    )
  })

  it('refuses operands that do not fit', async () => {
    const operands = [blank(4, 2), blank(6, 2), f32(random(4, 6, 1)), f32(random(4, 2, 2)), f32(random(6, 2, 3))]
    await refuses('loraGrad', operands, numbers([{ column: 2, width: 6 }]), /loraGrad: a part is outside of dY/)
    await refuses('loraGrad', operands, numbers([{ column: 0, width: 5 }]), /loraGrad: b has more rows than/)
    const halves = [
      { column: 0, width: 3 },
      { column: 3, width: 3 },
    ]
    await refuses('loraGrad', operands, numbers(halves), /loraGrad: u is f32\[4,2\], expected \[4,4\]/)
  })
})
