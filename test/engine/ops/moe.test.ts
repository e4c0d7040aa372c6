import { strict as assert } from 'node:assert'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { product } from '../../reference/gemm.ts'
import { at, close, column, equal, inner, matrix, plus, put, random, type Matrix } from '../../reference/matrix.ts'
import { balance, balanceLoss, choiceWeights, ofStack, route, softmax } from '../../reference/moe.ts'
import { blank, compute, f32, i32, over, refuses, typed } from './command.ts'

const int = (m: Matrix) => typed(m, 'i32')
const blankInt = (rows: number, cols: number) => int(matrix(rows, cols, () => 77))
const shapes = [
  { rows: 1, experts: 2, k: 1 },
  { rows: 13, experts: 5, k: 2 },
  { rows: 150, experts: 64, k: 8 },
] as const

describe('route', () => {
  for (const { rows, experts, k } of shapes)
    it(`${k} of ${experts} experts for ${rows} tokens`, async () => {
      for (const renormalise of [true, false]) {
        const logits = random(rows, experts, 1, 3)
        const expected = route(logits, k, renormalise)
        const operands = [
          blank(rows * k, 1),
          blankInt(rows * k, 1),
          blankInt(rows, k),
          blankInt(experts + 1, 1),
          typed(
            matrix(1, 2 * experts, () => 7),
            'f64',
          ),
          f32(logits),
        ]
        const [weight, token, place, first, gathered] = await compute('route', operands, { ints: [renormalise ? 1 : 0] })
        close(weight!, expected.weight, 1e-7, 'weight')
        equal(token!, expected.token, 'token')
        equal(place!, expected.place, 'place')
        equal(first!, expected.first, 'first')
        close(gathered!, balance(logits, expected.expert), 1e-7, 'balance')
      }
    })

  it('takes the lower number on a tie', async () => {
    const logits = matrix(2, 4, (row, e) => (row === 0 ? 1 : [0, 2, 2, 2][e]!))
    const operands = [blank(4, 1), blankInt(4, 1), blankInt(2, 2), blankInt(5, 1), undefined, f32(logits)]
    const [, , , first] = await compute('route', operands, { ints: [1] })
    assert.deepEqual([...first!.data], [0, 1, 3, 4, 4])
  })

  it('refuses more choices than experts', async () => {
    const operands = [blank(6, 1), blankInt(6, 1), blankInt(2, 3), blankInt(3, 1), undefined, f32(random(2, 2, 1))]
    await refuses('route', operands, { ints: [1] }, /route: place has more columns than there are experts/)
  })
})

describe('routeGrad', () => {
  for (const { rows, experts, k } of shapes.slice(0, 2))
    for (const renormalise of [true, false])
      it(`${k} of ${experts}, ${renormalise ? 'renormalised' : 'as they are'}, with and without balance`, async () => {
        const logits = random(rows, experts, 1, 3)
        const { expert, place, first } = route(logits, k, renormalise)
        const dWeight = random(rows * k, 1, 2)
        const loss = (v: Matrix) =>
          inner(
            choiceWeights(v, expert, renormalise),
            matrix(rows, k, (row, j) => at(dWeight, at(place, row, j), 0)),
          )
        const operands = [blank(rows, experts), f32(dWeight), f32(logits), int(place), int(first)]
        const [alone] = await compute('routeGrad', operands, { ints: [renormalise ? 1 : 0] })
        const expected = finiteDifferences(loss, logits)
        close(
          plus(
            alone!,
            matrix(rows, experts, () => 1),
          ),
          plus(
            expected,
            matrix(rows, experts, () => 1),
          ),
          1e-6,
          'dLogits',
        )

        const share = random(1, experts, 3)
        const weight = 0.75
        const balanced = (v: Matrix) => {
          const p = softmax(v)
          return (
            loss(v) +
            weight *
              inner(
                p,
                matrix(rows, experts, (_, e) => at(share, 0, e)),
              )
          )
        }
        const [both] = await compute('routeGrad', [...operands, f32(share), f32(column([weight]))], {
          ints: [renormalise ? 1 : 0],
        })
        close(both!, finiteDifferences(balanced, logits), 1e-6, 'dLogits with balance')
      })
})

describe('balanceLoss', () => {
  it('joins the layers and passes gradient to the probabilities only', async () => {
    const [experts, k] = [5, 2]
    const layers = [1, 2, 3].map((seed) => {
      const logits = random(11, experts, seed, 2)
      return balance(logits, route(logits, k, true).expert)
    })
    const [loss, share] = await compute('balanceLoss', [blank(1, 1), blank(1, experts), ...layers.map((m) => typed(m, 'f64'))], {
      ints: [k],
    })
    assert.ok(Math.abs(loss!.data[0]! / balanceLoss(layers, k) - 1) < 1e-7)
    const probabilities = matrix(1, experts, (_, e) => at(layers[1]!, 0, experts + e))
    const moved = (v: Matrix) =>
      balanceLoss(
        layers.map((m, i) =>
          i === 1 ? matrix(1, 2 * experts, (_, c) => (c < experts ? at(m, 0, c) : at(v, 0, c - experts))) : m,
        ),
        k,
      )
    close(share!, finiteDifferences(moved, probabilities), 1e-6, 'share')
  })
})

/** Slots of the experts; one of them has none. */
const first = [0, 7, 7, 8, 20]
const experts = first.length - 1
const slots = first.at(-1)!
const expertOf = (slot: number) => first.findIndex((_, e) => slot < first[e + 1]!)
const rowsOfExpert = (m: Matrix, e: number) => matrix(first[e + 1]! - first[e]!, m.cols, (r, c) => at(m, first[e]! + r, c))
/** [out, E·r] by columns from E matrices. */
const columnsStack = (rows: number, rank: number, seed: number) => random(rows, rank * experts, seed)

describe('expertGemm', () => {
  const [inputs, outputs, rank] = [33, 18, 3]
  const none = [undefined, undefined]

  for (const dtype of ['f32', 'bf16'] as const)
    it(`gives each slot its expert’s product, ${dtype} weights`, async () => {
      const x = random(slots, inputs, 1)
      const w = random(experts * outputs, inputs, 2, 1, dtype)
      const u = random(slots, rank, 3)
      const b = columnsStack(outputs, rank, 4)
      const expected = (alpha: number, low: number) => {
        const y = matrix(slots, outputs)
        for (let slot = 0; slot < slots; slot++) {
          const e = expertOf(slot)
          const row = product(
            matrix(1, inputs, (_, c) => at(x, slot, c)),
            ofStack(w, e, experts, false),
            0,
          )
          const extra = product(
            matrix(1, rank, (_, c) => at(u, slot, c)),
            ofStack(b, e, experts, true),
            0,
          )
          for (let c = 0; c < outputs; c++) put(y, slot, c, alpha * at(row, 0, c) + low * at(extra, 0, c))
        }
        return y
      }
      const operands = [blank(slots, outputs), f32(x), typed(w, dtype), i32(first)]
      const [plain] = await compute('expertGemm', [...operands, ...none], { ints: [0, 0, 0], floats: [1, 1] })
      close(plain!, expected(1, 0), 1e-6, 'y')
      const [adapted] = await compute('expertGemm', [...operands, f32(u), f32(b)], { ints: [0, 0, 2], floats: [0.5, 2] })
      close(adapted!, expected(0.5, 2), 1e-6, 'adapted y')
    })

  it('takes gradients back through weights, A and B', async () => {
    const dy = random(slots, outputs, 1)
    const w = random(experts * outputs, inputs, 2)
    const a = random(experts * rank, inputs, 3)
    const b = columnsStack(outputs, rank, 4)
    const du = matrix(slots, rank)
    const dx = matrix(slots, inputs)
    for (let slot = 0; slot < slots; slot++) {
      const e = expertOf(slot)
      const mine = matrix(1, outputs, (_, c) => at(dy, slot, c))
      const u = product(mine, ofStack(b, e, experts, true), 1)
      const x = plus(
        product(mine, ofStack(w, e, experts, false), 1),
        product(
          matrix(1, rank, (_, c) => 2 * at(u, 0, c)),
          ofStack(a, e, experts, false),
          1,
        ),
      )
      for (let c = 0; c < rank; c++) put(du, slot, c, 2 * at(u, 0, c))
      for (let c = 0; c < inputs; c++) put(dx, slot, c, at(x, 0, c))
    }
    const [gotU] = await compute('expertGemm', [blank(slots, rank), f32(dy), f32(b), i32(first), ...none], {
      ints: [1, 0, 1],
      floats: [2, 1],
    })
    close(gotU!, du, 1e-6, 'du')
    const [gotX] = await compute('expertGemm', [blank(slots, inputs), f32(dy), f32(w), i32(first), f32(gotU!), f32(a)], {
      ints: [1, 0, 0],
      floats: [1, 1],
    })
    close(gotX!, dx, 1e-6, 'dx')
  })

  it('adds weight gradients to a stack by rows or by columns, and leaves an expert without slots alone', async () => {
    const dy = random(slots, outputs, 1)
    const x = random(slots, inputs, 2)
    const u = random(slots, rank, 3)
    const start = random(experts * outputs, inputs, 4)
    const startB = columnsStack(outputs, rank, 5)
    const [dw] = await compute('expertGemm', [f32(start), f32(dy), f32(x), i32(first), ...none], {
      ints: [2, 0, 0],
      floats: [0.5, 1],
    })
    const [db] = await compute('expertGemm', [f32(startB), f32(dy), f32(u), i32(first), ...none], {
      ints: [2, 0, 1],
      floats: [2, 1],
    })
    for (let e = 0; e < experts; e++) {
      const scaled = (m: Matrix, factor: number) => matrix(m.rows, m.cols, (r, c) => factor * at(m, r, c))
      close(
        ofStack(dw!, e, experts, false),
        plus(ofStack(start, e, experts, false), scaled(product(rowsOfExpert(dy, e), rowsOfExpert(x, e), 2), 0.5)),
        1e-6,
        `dw ${e}`,
      )
      close(
        ofStack(db!, e, experts, true),
        plus(ofStack(startB, e, experts, true), scaled(product(rowsOfExpert(dy, e), rowsOfExpert(u, e), 2), 2)),
        1e-6,
        `db ${e}`,
      )
    }
  })

  it('refuses slots that no expert has', async () => {
    const operands = [blank(3, 2), f32(random(3, 2, 1)), f32(random(4, 2, 2)), i32([0, 1, 2]), ...none]
    await refuses('expertGemm', operands, { ints: [0, 0, 0], floats: [1, 1] }, /expertGemm: first does not span the rows of a/)
    await refuses(
      'expertGemm',
      [blank(3, 2), f32(random(3, 2, 1)), f32(random(5, 2, 2)), i32([0, 1, 3]), ...none],
      { ints: [0, 0, 0], floats: [1, 1] },
      /no stack of 2/,
    )
  })
})

describe('combineRows', () => {
  it('adds up the slots of each token', async () => {
    const place = matrix(4, 3, (row, j) => (row * 3 + j * 5) % 12)
    const x = random(12, 37, 1)
    const add = random(4, 37, 2)
    const start = random(4, 37, 3)
    const sum = matrix(4, 37, (row, c) => [0, 1, 2].reduce((total, j) => total + at(x, at(place, row, j), c), 0))
    const [plain] = await compute('combineRows', [blank(4, 37), f32(x), int(place), undefined], { ints: [0] })
    close(plain!, sum, 2e-7, 'y')
    const [added] = await compute('combineRows', [blank(4, 37), f32(x), int(place), f32(add)], { ints: [0] })
    close(added!, plus(sum, add), 2e-7, 'y with add')
    const [accumulated] = await compute('combineRows', [f32(start), f32(x), int(place), f32(add)], { ints: [1] })
    close(accumulated!, plus(plus(sum, add), start), 2e-7, 'y accumulated')
    await refuses(
      'combineRows',
      [blank(4, 37), f32(random(11, 37, 1)), int(place), undefined],
      { ints: [0] },
      /combineRows: place\[.*\] = 11 is not below 11/,
    )
  })
})

describe('scaleRows', () => {
  it('multiplies each row, also in place', async () => {
    const x = random(9, 41, 1)
    const w = random(9, 1, 2)
    const expected = matrix(9, 41, (r, c) => Math.fround(at(x, r, c) * at(w, r, 0)))
    const [y] = await compute('scaleRows', [blank(9, 41), f32(x), f32(w)])
    equal(y!, expected, 'y')
    const operands = [f32(x), f32(x), f32(w)]
    const [inPlace] = await compute('scaleRows', [operands[0], over(operands, 0), operands[2]])
    equal(inPlace!, expected, 'in place')
  })
})

describe('scaleRowsGrad', () => {
  it('gives rows and factors their gradients', async () => {
    const x = random(9, 41, 1)
    const w = random(9, 1, 2)
    const dy = random(9, 41, 3)
    const loss = (rows: Matrix, factors: Matrix) =>
      inner(
        matrix(9, 41, (r, c) => at(rows, r, c) * at(factors, r, 0)),
        dy,
      )
    const operands = [f32(dy), blank(9, 1), f32(dy), f32(x), f32(w)]
    const [dx, dw] = await compute('scaleRowsGrad', [blank(9, 41), ...operands.slice(1)])
    close(
      dx!,
      finiteDifferences((v) => loss(v, w), x),
      1e-6,
      'dx',
    )
    close(
      dw!,
      finiteDifferences((v) => loss(x, v), w),
      1e-6,
      'dw',
    )
    const [inPlace, ,] = await compute('scaleRowsGrad', [operands[0], operands[1], over(operands, 0), operands[3], operands[4]])
    equal(inPlace!, dx!, 'in place')
  })
})

describe('expertDelta', () => {
  it('adds B·A of the experts that the rows belong to', async () => {
    const [outputs, inputs, rank] = [10, 21, 3]
    const a = random(experts * rank, inputs, 1)
    const b = columnsStack(outputs, rank, 2)
    const whole = random(experts * outputs, inputs, 3)
    const delta = matrix(experts * outputs, inputs, (r, c) => {
      const e = Math.floor(r / outputs)
      return (
        0.5 * [...Array(rank).keys()].reduce((sum, j) => sum + at(b, r % outputs, j * experts + e) * at(a, e * rank + j, c), 0)
      )
    })
    for (const [row, rows] of [
      [0, experts * outputs],
      [13, 5],
      [8, 17],
    ] as const) {
      const part = (m: Matrix) => matrix(rows, inputs, (r, c) => at(m, row + r, c))
      const [c] = await compute('expertDelta', [f32(part(whole)), f32(a), f32(b)], { ints: [row, experts], floats: [0.5] })
      close(c!, plus(part(whole), part(delta)), 1e-6, `rows from ${row}`)
    }
    await refuses(
      'expertDelta',
      [f32(random(9, inputs, 1)), f32(a), f32(b)],
      { ints: [32, experts], floats: [1] },
      /the rows of c are not in the stack/,
    )
  })
})
