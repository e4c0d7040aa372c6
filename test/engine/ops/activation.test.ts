import { strict as assert } from 'node:assert'
import { act, activation, capped, glu, kinds } from '../../reference/activation.ts'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { at, close, equal, inner, matrix, random, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, over, refuses } from './command.ts'

const shapes = [
  [1, 1],
  [3, 17],
  [5, 64],
  [3, 17000],
] as const
/** What the tails of the functions look like: from −12 to 12. */
const sweep = matrix(1, 4801, (_, c) => Math.fround((c - 2400) / 200))

describe('glu', () => {
  for (const [name, kind] of Object.entries(kinds).slice(0, 3))
    it(`${name} over odd shapes`, async () => {
      for (const [rows, cols] of shapes) {
        const gate = random(rows, cols, 1, 5)
        const up = random(rows, cols, 2)
        const [h] = await compute('glu', [blank(rows, cols), f32(gate), f32(up)], { ints: [kind] })
        close(h!, glu(gate, up, kind), 2e-7, `h[${rows},${cols}]`)
      }
    })

  it('refuses a kind that it does not have', async () => {
    await refuses('glu', [blank(1, 2), f32(matrix(1, 2)), f32(matrix(1, 2))], { ints: [3] }, /glu: unknown activation kind 3/)
    await refuses(
      'glu',
      [blank(1, 2), f32(matrix(1, 3)), f32(matrix(1, 2))],
      { ints: [0] },
      /glu: gate is f32\[1,3\], expected \[1,2\]/,
    )
  })
})

describe('gluGrad', () => {
  for (const [name, kind] of Object.entries(kinds).slice(0, 3))
    it(`${name} equals finite differences, also in the memory of gate and up`, async () => {
      const gate = random(3, 17, 1, 4)
      const up = random(3, 17, 2)
      const dH = random(3, 17, 3)
      const [dGate, dUp] = await compute('gluGrad', [blank(3, 17), blank(3, 17), undefined, f32(dH), f32(gate), f32(up)], {
        ints: [kind],
      })
      close(
        dGate!,
        finiteDifferences((v) => inner(glu(v, up, kind), dH), gate),
        1e-6,
        'dGate',
      )
      close(
        dUp!,
        finiteDifferences((v) => inner(glu(gate, v, kind), dH), up),
        1e-6,
        'dUp',
      )
      const operands = [f32(gate), f32(up), undefined, f32(dH)]
      const inPlace = await compute('gluGrad', [...operands, over(operands, 0), over(operands, 1)], { ints: [kind] })
      equal(inPlace[0]!, dGate!, 'dGate in place')
      equal(inPlace[1]!, dUp!, 'dUp in place')
    })

  for (const [name, kind] of Object.entries(kinds).slice(0, 3))
    it(`${name} brings back what glu made, also in the memory of dH`, async () => {
      for (const [rows, cols] of shapes) {
        const [gate, up, dH] = [random(rows, cols, 1, 5), random(rows, cols, 2), random(rows, cols, 3)]
        const [expected] = await compute('glu', [blank(rows, cols), f32(gate), f32(up)], { ints: [kind] })
        const alone = await compute('gluGrad', [blank(rows, cols), blank(rows, cols), undefined, f32(dH), f32(gate), f32(up)], {
          ints: [kind],
        })
        const operands = [f32(gate), f32(up), f32(dH)]
        const [dGate, dUp, h] = await compute('gluGrad', [...operands, over(operands, 2), over(operands, 0), over(operands, 1)], {
          ints: [kind],
        })
        equal(h!, expected!, `h[${rows},${cols}]`)
        equal(dGate!, alone[0]!, `dGate[${rows},${cols}]`)
        equal(dUp!, alone[1]!, `dUp[${rows},${cols}]`)
      }
    })
})

describe('activation', () => {
  for (const [name, kind] of Object.entries(kinds)) {
    it(`${name} over odd shapes`, async () => {
      for (const [rows, cols] of shapes) {
        const x = random(rows, cols, 1, 5)
        const [y] = await compute('activation', [blank(rows, cols), f32(x)], { ints: [kind] })
        close(y!, activation(x, kind), 2e-7, `y[${rows},${cols}]`)
      }
    })

    it(`${name} keeps its relative precision in the tails`, async () => {
      const [y] = await compute('activation', [blank(1, sweep.cols), f32(sweep)], { ints: [kind] })
      sweep.data.forEach((x, i) => {
        const expected = act(x, kind)
        // A tail is exp of a number that is itself rounded: the error grows with that number.
        const tolerance = 2e-7 * (1 + Math.abs(Math.log(Math.abs(expected) + 1e-37)))
        assert.ok(
          Math.abs(y!.data[i]! - expected) <= tolerance * Math.abs(expected) + 1e-37,
          `act(${x}) = ${y!.data[i]}, expected ${expected}`,
        )
      })
    })
  }

  it('passes infinities and NaN on', async () => {
    const x = matrix(1, 3, (_, c) => [Infinity, NaN, -200][c]!)
    for (const kind of Object.values(kinds)) {
      const [y] = await compute('activation', [blank(1, 3), f32(x)], { ints: [kind] })
      assert.equal(at(y!, 0, 0), kind === kinds.sigmoid ? 1 : Infinity)
      assert.ok(Number.isNaN(at(y!, 0, 1)), `kind ${kind}`)
      assert.ok(Math.abs(at(y!, 0, 2)) < 1e-30, `kind ${kind}: ${at(y!, 0, 2)}`)
    }
  })
})

describe('activationGrad', () => {
  for (const [name, kind] of Object.entries(kinds))
    it(`${name} equals finite differences`, async () => {
      const x = random(3, 17, 1, 4)
      const dy = random(3, 17, 2)
      const [dx] = await compute('activationGrad', [blank(3, 17), f32(dy), f32(x)], { ints: [kind] })
      close(
        dx!,
        finiteDifferences((v) => inner(activation(v, kind), dy), x),
        1e-6,
        'dx',
      )
      const operands = [f32(dy)]
      const [inPlace] = await compute('activationGrad', [...operands, over(operands, 0), f32(x)], { ints: [kind] })
      equal(inPlace!, dx!, 'dx in the memory of dy')
    })
})

describe('logitCap', () => {
  const cap = (x: Matrix, scale: number, softcap: number) => matrix(x.rows, x.cols, (r, c) => capped(at(x, r, c), scale, softcap))
  for (const [scale, softcap] of [
    [1, 0],
    [0.25, 0],
    [1, 30],
    [0.5, 4],
  ] as const)
    it(`scale ${scale}, softcap ${softcap}`, async () => {
      for (const [rows, cols] of shapes) {
        const x = random(rows, cols, 1, 40)
        const [y] = await compute('logitCap', [f32(x)], { floats: [scale, softcap] })
        close(y!, cap(x, scale, softcap), 2e-7, `x[${rows},${cols}]`)
      }
    })

  it('keeps its relative precision for small arguments', async () => {
    const x = matrix(1, 400, (_, c) => Math.fround(10 ** ((c - 300) / 50)))
    const [y] = await compute('logitCap', [f32(x)], { floats: [1, 5] })
    x.data.forEach((value, i) => {
      const expected = capped(value, 1, 5)
      assert.ok(Math.abs(y!.data[i]! - expected) <= 4e-7 * expected, `${value}: ${y!.data[i]}, expected ${expected}`)
    })
  })
})
