import { strict as assert } from 'node:assert'
import { dtypeCode } from '../../../engine/graph/dtype.ts'
import { at, close, equal, matrix, plus, random, type Matrix } from '../../reference/matrix.ts'
import { dropout, philox } from '../../reference/random.ts'
import { blank, compute, deviceOf, f32, refuses, typed } from './command.ts'

const keys = (rows: number) => matrix(rows, 2, (row, c) => (c === 0 ? 3 + row : 1000 * row))
const seedStep = typed(
  matrix(1, 2, (_, c) => [123456789, 42][c]!),
  'i32',
)
const operands = (x: ReturnType<typeof random>) => [blank(x.rows, x.cols), f32(x), typed(keys(x.rows), 'i32'), seedStep]

describe('dropout', () => {
  it('uses the reference generator: known answers of Random123', () => {
    // kat_vectors of Random123 1.14, philox4x32 with 10 rounds.
    const answer = (counter: number[], key: number[]) =>
      philox(counter, key)
        .map((word) => word.toString(16).padStart(8, '0'))
        .join(' ')
    const all = 0xffffffff
    assert.equal(answer([0, 0, 0, 0], [0, 0]), '6627e8d5 e169c58d bc57ac4c 9b00dbd8')
    assert.equal(answer([all, all, all, all], [all, all]), '408f276d 41c83b0e a20bc7c6 6d5451fd')
    assert.equal(
      answer([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    )
  })

  for (const [rows, cols] of [
    [1, 1],
    [3, 17],
    [4, 300],
  ] as const)
    it(`[${rows},${cols}] keeps exactly the elements that the formula keeps`, async () => {
      const x = random(rows, cols, 1)
      for (const p of [0, 0.1, 0.5]) {
        const expected = dropout(x, keys(rows), 123456789, 42, 7, p)
        const [y] = await compute('dropout', operands(x), { ints: [7, 0], floats: [p] })
        close(y!, expected, 1e-7, `p = ${p}`)
        const start = random(rows, cols, 2)
        const [added] = await compute('dropout', [f32(start), ...operands(x).slice(1)], { ints: [7, 1], floats: [p] })
        close(added!, plus(start, expected), 1e-7, `accumulated, p = ${p}`)
      }
    })

  it('shares its generator with fillUniform', async () => {
    const device = deviceOf(2)
    const elements = 100003
    const buffer = device.alloc(4 * elements)
    await device.fillUniform(buffer, 0, elements, dtypeCode('f32'), -1, 3, 77, 5)
    const values = new Float32Array(device.read(buffer, 0, 4 * elements))
    await device.fillUniform(buffer, 0, elements, dtypeCode('i32'), 0, 1, 77, 5)
    const words = new Uint32Array(device.read(buffer, 0, 4 * elements))
    device.free(buffer)
    for (const i of [0, 1, 2, 3, 4, 65535, 65536, elements - 1]) {
      const word = philox([Math.floor(i / 4), 0, 5, 0], [77, 0x756e6974])[i % 4]!
      assert.ok(Math.abs(values[i]! - (-1 + 4 * ((word >>> 8) / 2 ** 24))) < 1e-6, `element ${i} is ${values[i]}`)
      assert.equal(words[i], word >>> 0, `word ${i}`)
    }
  })

  it('drops the share that it was told to', async () => {
    const x = matrix(64, 512, () => 1)
    const [y] = await compute('dropout', operands(x), { ints: [1, 0], floats: [0.25] })
    const share = y!.data.filter((value) => value === 0).length / y!.data.length
    assert.ok(Math.abs(share - 0.25) < 0.01, `${share}`)
    assert.ok(
      Math.abs(
        at(
          y!,
          0,
          [...y!.data].findIndex((value) => value !== 0),
        ) -
          4 / 3,
      ) < 1e-6,
    )
  })

  it('treats negative seeds as unsigned words', async () => {
    const x = random(2, 9, 1)
    const random32 = typed(
      matrix(1, 2, (_, c) => [-5, 1][c]!),
      'i32',
    )
    const [y] = await compute('dropout', [blank(2, 9), f32(x), typed(keys(2), 'i32'), random32], { ints: [0, 0], floats: [0.5] })
    close(y!, dropout(x, keys(2), 2 ** 32 - 5, 1, 0, 0.5), 1e-7, 'y')
  })

  it('refuses to drop everything', async () => {
    await refuses(
      'dropout',
      operands(random(1, 4, 1)),
      { ints: [0, 0], floats: [1] },
      /dropout: p must be at least 0 and below 1/,
    )
  })
})

describe('noise', () => {
  const places = (rows: number) => matrix(rows, 2, (row, col) => (col === 0 ? row >> 1 : row))
  const noisy = (x: Matrix, scale: number) => [
    blank(x.rows, x.cols),
    f32(x),
    f32(matrix(x.rows, 1, (row) => scale * (row + 1))),
    typed(places(x.rows), 'i32'),
    typed(
      matrix(1, 2, (_, col) => 3 + col),
      'i32',
    ),
  ]

  it('is uniform, of the size of its row, and the same for the same token', async () => {
    const x = random(4, 4001, 1)
    const [y] = await compute('noise', noisy(x, 0.1), { ints: [7], floats: [2] })
    for (let row = 0; row < 4; ++row) {
      const size = 0.2 * (row + 1)
      const values = Array.from({ length: x.cols }, (_, col) => (at(y!, row, col) - at(x, row, col)) / size)
      assert.ok(values.every((value) => value >= -1.0001 && value <= 1.0001))
      assert.ok(Math.abs(values.reduce((a, b) => a + b) / x.cols) < 0.05)
      assert.ok(Math.abs(values.reduce((a, b) => a + b * b, 0) / x.cols - 1 / 3) < 0.03)
    }
    const [again] = await compute('noise', noisy(x, 0.1), { ints: [7], floats: [2] })
    equal(again!, y!, 'y')
    const [other] = await compute('noise', noisy(x, 0.1), { ints: [8], floats: [2] })
    assert.notDeepEqual(other!.data, y!.data)
  })

  it('has the words of Philox', async () => {
    const [y] = await compute('noise', noisy(matrix(1, 4), 1), { ints: [0], floats: [1] })
    const word = (value: number) => Math.round((value + 1) * 2 ** 23)
    const expected = philox([0, 0, 0, 0], [3, 4]).map((value) => value >>> 8)
    assert.deepEqual(
      [0, 1, 2, 3].map((col) => word(at(y!, 0, col))),
      expected,
    )
  })
})
