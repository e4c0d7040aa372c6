import assert from 'node:assert/strict'
import { checkSampling, greedy, sampleToken, uniform, type SamplingOptions } from '../../engine/generate/sampler.ts'
import { StopMatcher } from '../../engine/generate/stopMatcher.ts'
import { failure } from './support.ts'

/** Logits whose softmax is exactly these shares. */
const logitsOf = (...shares: number[]): Float32Array => Float32Array.from(shares, Math.log)
const plain: SamplingOptions = { ...greedy, temperature: 1 }

/** How often each id comes, over evenly spread draws. */
function shares(logits: () => Float32Array, options: SamplingOptions, seen: readonly number[] = []): number[] {
  const count = 1000
  const counts = new Array<number>(logits().length).fill(0)
  for (let i = 0; i < count; ++i) counts[sampleToken(logits(), seen, options, (i + 0.5) / count)]! += 1 / count
  return counts
}

function assertShares(got: readonly number[], expected: readonly number[]): void {
  expected.forEach((share, id) =>
    assert.ok(Math.abs(got[id]! - share) < 0.0021, `${got.join(' ')} instead of ${expected.join(' ')}`),
  )
}

describe('sampling', () => {
  const logits = () => logitsOf(0.1, 0.4, 0.2, 0.3)

  it('greedy takes the likeliest, of equals the first, whatever is drawn', () => {
    for (const draw of [0, 0.5, 0.999]) assert.equal(sampleToken(logits(), [], greedy, draw), 1)
    assert.equal(sampleToken(Float32Array.of(1, 2, 2), [], greedy, 0.9), 1)
  })
  it('temperature 1 samples the distribution', () => assertShares(shares(logits, plain), [0.1, 0.4, 0.2, 0.3]))
  it('temperature ½ squares the shares, 2 takes their roots', () => {
    assertShares(
      shares(logits, { ...plain, temperature: 0.5 }),
      [0.01, 0.16, 0.04, 0.09].map((x) => x / 0.3),
    )
    const roots = [0.1, 0.4, 0.2, 0.3].map(Math.sqrt)
    const total = roots.reduce((a, b) => a + b)
    assertShares(
      shares(logits, { ...plain, temperature: 2 }),
      roots.map((x) => x / total),
    )
  })
  it('top-k keeps the k likeliest, of equals the first', () => {
    assertShares(shares(logits, { ...plain, topK: 2 }), [0, 4 / 7, 0, 3 / 7])
    assertShares(
      shares(() => logitsOf(0.25, 0.25, 0.25, 0.25), { ...plain, topK: 2 }),
      [0.5, 0.5, 0, 0],
    )
    assertShares(shares(logits, { ...plain, topK: 100 }), [0.1, 0.4, 0.2, 0.3])
  })
  it('top-p keeps the smallest set that reaches p, at least one', () => {
    assertShares(shares(logits, { ...plain, topP: 0.65 }), [0, 4 / 7, 0, 3 / 7])
    assertShares(shares(logits, { ...plain, topP: 0.75 }), [0, 4 / 9, 2 / 9, 3 / 9])
    assertShares(shares(logits, { ...plain, topP: 0.01 }), [0, 1, 0, 0])
  })
  it('min-p drops what is less likely than that share of the likeliest', () => {
    assertShares(shares(logits, { ...plain, minP: 0.6 }), [0, 4 / 7, 0, 3 / 7])
    assertShares(shares(logits, { ...plain, minP: 0.4 }), [0, 4 / 9, 2 / 9, 3 / 9])
  })
  it('top-k comes before top-p: its share is of what is left', () =>
    assertShares(shares(logits, { ...plain, topK: 3, topP: 0.43 }), [0, 1, 0, 0]))
  it('the repetition penalty divides positive and multiplies negative logits of what occurred, once each', () => {
    const values = () => Float32Array.of(2, 3, -1, -1.5)
    assert.equal(sampleToken(values(), [1, 1, 1], { ...greedy, repetitionPenalty: 1.4 }, 0), 1)
    assert.equal(sampleToken(values(), [1], { ...greedy, repetitionPenalty: 1.6 }, 0), 0)
    const changed = values()
    sampleToken(changed, [0, 2], { ...greedy, repetitionPenalty: 2 }, 0)
    assert.deepEqual([...changed], [1, 3, -2, -1.5])
  })
  it('a draw depends on seed and step, and is uniform', () => {
    assert.equal(uniform(1, 2), uniform(1, 2))
    assert.notEqual(uniform(1, 2), uniform(1, 3))
    assert.notEqual(uniform(1, 2), uniform(2, 2))
    const draws = Array.from({ length: 4000 }, (_, i) => uniform(3407, i))
    assert.ok(draws.every((x) => x >= 0 && x < 1))
    for (let tenth = 0; tenth < 10; ++tenth) {
      const inside = draws.filter((x) => x >= tenth / 10 && x < (tenth + 1) / 10).length
      assert.ok(Math.abs(inside - 400) < 80, `${inside} of 4000 in tenth ${tenth}`)
    }
  })
  it('settings out of range are refused by name', () => {
    const cases: [Partial<SamplingOptions>, RegExp][] = [
      [{ temperature: -1 }, /temperature/],
      [{ topK: 1.5 }, /top_k/],
      [{ topP: 0 }, /top_p/],
      [{ topP: 1.1 }, /top_p/],
      [{ minP: 1 }, /min_p/],
      [{ repetitionPenalty: 0 }, /repetition_penalty/],
      [{ temperature: NaN }, /temperature/],
    ]
    for (const [change, message] of cases) assert.throws(() => checkSampling({ ...plain, ...change }), failure('USAGE', message))
    checkSampling(plain)
  })
})

describe('stop strings', () => {
  const read = (stops: readonly string[], pieces: readonly string[]) => {
    const matcher = new StopMatcher(stops)
    const shown = pieces.map((piece) => matcher.push(piece))
    return { shown, text: shown.join('') + matcher.end(), matched: matcher.matched }
  }
  it('are found across pieces, and nothing of them is shown', () => {
    assert.deepEqual(read(['END'], ['one E', 'N', 'D two']), { shown: ['one ', '', ''], text: 'one ', matched: true })
  })
  it('what only began like one is shown later', () => {
    assert.deepEqual(read(['END'], ['E', 'N', 'E', 'NX']), { shown: ['', '', 'EN', 'ENX'], text: 'ENENX', matched: false })
    assert.deepEqual(read(['END'], ['so E']), { shown: ['so '], text: 'so E', matched: false })
  })
  it('the first of several ends the text', () => assert.equal(read(['two', 'one'], ['a one two']).text, 'a '))
  it('of two that overlap the earlier one counts', () => assert.equal(read(['bcd', 'abc'], ['xab', 'cd']).text, 'x'))
  it('an empty one stops nothing', () => assert.equal(read([''], ['text']).text, 'text'))
  it('surrogate pairs and line breaks are plain text', () => assert.equal(read(['\n\n'], ['a🦊\n', '\nb']).text, 'a🦊'))
})
