import { strict as assert } from 'node:assert'
import { attention, attentionGrad, type AttentionCase } from '../../reference/attention.ts'
import { finiteDifferences } from '../../reference/finiteDifferences.ts'
import { at, close, inner, matrix, random, relativeError, type Matrix } from '../../reference/matrix.ts'
import { blank, compute, f32, i32, refuses, type Operand } from './command.ts'

type Layout = Pick<AttentionCase, 'qStart' | 'kvStart' | 'kvLength'>

/** Packed sequences whose keys are their own tokens. */
const packed = (lengths: readonly number[]): Layout => {
  const starts = [0]
  for (const length of lengths) starts.push(starts.at(-1)! + length)
  return { qStart: starts, kvStart: starts.slice(0, -1), kvLength: lengths }
}

const base = { heads: 4, kvHeads: 2, headDim: 8, window: 0, scale: 0.3, softcap: 0 }
const cases: [string, AttentionCase][] = [
  ['one token', { ...base, ...packed([1]) }],
  ['three sequences', { ...base, ...packed([3, 1, 9]) }],
  ['a long sequence, head dim 64', { ...base, heads: 2, headDim: 64, scale: 0.125, ...packed([140]) }],
  ['head dim 48, 6 of 6 heads', { ...base, heads: 6, kvHeads: 6, headDim: 48, ...packed([40, 37]) }],
  ['head dim 80, 7 query heads a kv head', { ...base, heads: 7, kvHeads: 1, headDim: 80, ...packed([21, 50]) }],
  ['head dim 5', { ...base, headDim: 5, ...packed([19]) }],
  ['head dim 256', { ...base, heads: 2, kvHeads: 1, headDim: 256, scale: 1 / 16, ...packed([70]) }],
  ['a window shorter than the sequence', { ...base, window: 5, ...packed([90, 3]) }],
  ['a window of one', { ...base, window: 1, ...packed([33]) }],
  ['a window longer than the sequence', { ...base, window: 500, ...packed([33]) }],
  ['a window across tiles', { ...base, window: 70, ...packed([200]) }],
  ['softcap', { ...base, softcap: 2, scale: 1.5, ...packed([70]) }],
  ['softcap and window', { ...base, softcap: 0.5, scale: 2, window: 9, ...packed([70]) }],
  ['a cache: one query each', { ...base, qStart: [0, 1, 2], kvStart: [0, 100], kvLength: [77, 5] }],
  ['a cache: several queries, keys in another order', { ...base, qStart: [0, 4, 11], kvStart: [90, 3], kvLength: [10, 80] }],
]

function inputs(c: AttentionCase, seed: number): { q: Matrix; k: Matrix; v: Matrix; where: Operand[] } {
  const rows = c.qStart.at(-1)!
  const keys = Math.max(...c.kvStart.map((start, i) => start + c.kvLength[i]!)) + 2
  const q = random(rows, c.heads * c.headDim, seed)
  const k = random(keys, c.kvHeads * c.headDim, seed + 1)
  const v = random(keys, c.kvHeads * c.headDim, seed + 2)
  return { q, k, v, where: [i32(c.qStart), i32(c.kvStart), i32(c.kvLength)] }
}

const numbers = (c: AttentionCase) =>
  ({
    ints: [c.heads, c.kvHeads, c.window],
    floats: [c.scale, c.softcap],
    dims: [c.qStart.at(-1)!, 0, c.kvLength.length],
  }) as const

async function run(
  c: AttentionCase,
  seed: number,
): Promise<{ o: Matrix; lse: Matrix; q: Matrix; k: Matrix; v: Matrix; where: Operand[] }> {
  const { q, k, v, where } = inputs(c, seed)
  const [o, lse] = await compute(
    'attention',
    [blank(q.rows, q.cols), blank(q.rows, c.heads), f32(q), f32(k), f32(v), ...where],
    numbers(c),
  )
  return { o: o!, lse: lse!, q, k, v, where }
}

describe('attention', () => {
  for (const [name, c] of cases)
    it(name, async () => {
      const { o, lse, q, k, v } = await run(c, 1)
      const expected = attention(c, q, k, v)
      close(o, expected.o, 1e-6, 'o')
      close(lse, expected.lse, 1e-6, 'lse')
    })

  it('decodes against a long cache, split over its keys', async () => {
    for (const window of [0, 1500]) {
      const c = { ...base, heads: 6, headDim: 16, window, qStart: [0, 1, 3], kvStart: [0, 2900], kvLength: [2900, 1100] }
      const { o, lse, q, k, v } = await run(c, 5)
      const expected = attention(c, q, k, v)
      close(o, expected.o, 1e-6, 'o')
      close(lse, expected.lse, 1e-6, 'lse')
    }
  })

  it('gives a sequence the same bits alone and beside others', async () => {
    const pair: AttentionCase = { ...base, headDim: 16, qStart: [0, 30, 31], kvStart: [0, 30], kvLength: [30, 1300] }
    const { o, q, k, v } = await run(pair, 7)
    const alone: AttentionCase = { ...pair, qStart: [0, 1], kvStart: [30], kvLength: [1300] }
    const last = matrix(1, q.cols, (_, c) => at(q, 30, c))
    const where = [i32(alone.qStart), i32(alone.kvStart), i32(alone.kvLength)]
    const [single] = await compute(
      'attention',
      [blank(1, q.cols), blank(1, 4), f32(last), f32(k), f32(v), ...where],
      numbers(alone),
    )
    assert.deepEqual([...single!.data], [...o.data.slice(30 * q.cols)])
  })

  it('survives scores that overflow exp', async () => {
    const c = { ...base, scale: 400, ...packed([40]) }
    const { o, q, k, v } = await run(c, 9)
    assert.ok(relativeError(o, attention(c, q, k, v).o) < 2e-4) // scores near 1000 are rounded to 6e-5
  })

  it('refuses rows that do not exist', async () => {
    const c: AttentionCase = { ...base, ...packed([4]) }
    const { q, k, v } = inputs(c, 1)
    const operands = (where: Operand[]) => [blank(4, q.cols), blank(4, 4), f32(q), f32(k), f32(v), ...where]
    const tooMany = operands([i32([0, 4]), i32([0]), i32([7])])
    await refuses('attention', tooMany, numbers(c), /attention: sequence 0 has query rows 0 to 4 of 4 and 7 keys from row 0 of 6/)
    const tooFew = operands([i32([0, 4]), i32([0]), i32([3])])
    await refuses('attention', tooFew, numbers(c), /attention: sequence 0 .* 3 keys/)
  })
})

describe('attentionGrad', () => {
  const gradients = async (c: AttentionCase, seed: number) => {
    const { q, k, v, where } = inputs(c, seed)
    const dO = random(q.rows, q.cols, seed + 3)
    const { o, lse } = attention(c, q, k, v)
    const outputs = [blank(q.rows, q.cols), blank(k.rows, k.cols), blank(k.rows, k.cols), blank(q.rows, c.heads)]
    const [dq, dk, dv] = await compute(
      'attentionGrad',
      [...outputs, f32(dO), f32(o), f32(lse), f32(q), f32(k), f32(v), ...where],
      numbers(c),
    )
    return { dq: dq!, dk: dk!, dv: dv!, dO, q, k, v }
  }

  for (const [name, c] of cases)
    it(name, async () => {
      const { dq, dk, dv, dO, q, k, v } = await gradients(c, 11)
      const expected = attentionGrad(c, dO, q, k, v)
      close(dv, expected.dv, 1e-6, 'dv')
      // A window of one key leaves nothing for q and k to change: their gradient is rounding.
      const floor = c.window === 1 || c.qStart.at(-1) === 1 ? 1e-5 : 0
      for (const [what, actual, reference] of [
        ['dq', dq, expected.dq],
        ['dk', dk, expected.dk],
      ] as const)
        if (floor > 0)
          assert.ok(
            actual.data.every((value) => Math.abs(value) < floor),
            what,
          )
        else close(actual, reference, 5e-6, what)
    })

  it('equals finite differences', async () => {
    const small: AttentionCase[] = [
      { ...base, ...packed([5, 3]) },
      { ...base, softcap: 1.5, window: 3, headDim: 5, ...packed([6]) },
      { ...base, qStart: [0, 3], kvStart: [2], kvLength: [6] },
    ]
    for (const c of small) {
      const { dq, dk, dv, dO, q, k, v } = await gradients(c, 21)
      close(
        dq,
        finiteDifferences((x) => inner(attention(c, x, k, v).o, dO), q),
        5e-6,
        'dq',
      )
      close(
        dk,
        finiteDifferences((x) => inner(attention(c, q, x, v).o, dO), k),
        5e-6,
        'dk',
      )
      close(
        dv,
        finiteDifferences((x) => inner(attention(c, q, k, x).o, dO), v),
        5e-6,
        'dv',
      )
    }
  })

  it('cuts long sequences into larger blocks', async () => {
    for (const window of [0, 100]) {
      const c: AttentionCase = { ...base, heads: 2, kvHeads: 1, headDim: 4, window, ...packed([540]) }
      const { dq, dk, dv, dO, q, k, v } = await gradients(c, 31)
      const expected = attentionGrad(c, dO, q, k, v)
      close(dv, expected.dv, 1e-6, 'dv')
      close(dq, expected.dq, 5e-6, 'dq')
      close(dk, expected.dk, 5e-6, 'dk')
    }
  })
})
