import assert from 'node:assert/strict'
import { learningRate, type Schedule } from '../../engine/train/schedule.ts'

const rates = (schedule: Schedule, steps = schedule.totalSteps): number[] =>
  Array.from({ length: steps }, (_, step) => learningRate(step, schedule))
const near = (actual: readonly number[], expected: readonly number[]): void => {
  assert.equal(actual.length, expected.length)
  for (const [index, value] of expected.entries())
    assert.ok(Math.abs(actual[index]! - value) < 1e-12, `step ${index}: ${actual[index]} instead of ${value}`)
}

describe('schedule', () => {
  it('is that of the golden curves: linear, 2 of 12 steps warm-up, peak 5e-3', () => {
    const curve = [0, 0.0025, 0.005, 0.0045, 0.004, 0.0035, 0.003, 0.0025, 0.002, 0.0015, 0.001, 0.0005]
    near(
      rates({ type: 'linear', totalSteps: 12, warmupSteps: 2 }).map((rate) => 5e-3 * rate),
      curve,
    )
  })

  it('is half a cosine after 5 of 50 steps warm-up', () => {
    const schedule: Schedule = { type: 'cosine', totalSteps: 50, warmupSteps: 5 }
    const half = (share: number): number => (1 + Math.cos(Math.PI * share)) / 2
    near(
      [0, 1, 4, 5, 20, 35, 49, 50].map((step) => learningRate(step, schedule)),
      [0, 0.2, 0.8, 1, half(1 / 3), half(2 / 3), half(44 / 45), 0],
    )
    near(
      [20, 35].map((step) => 2e-3 * learningRate(step, schedule)),
      [1.5e-3, 0.5e-3],
    )
  })

  it('is constant, with or without warm-up', () => {
    assert.deepEqual(rates({ type: 'constant', totalSteps: 3, warmupSteps: 2 }), [1, 1, 1])
    assert.deepEqual(rates({ type: 'constant_with_warmup', totalSteps: 6, warmupSteps: 4 }), [0, 0.25, 0.5, 0.75, 1, 1])
  })

  it('starts the cosine again as often as asked', () => {
    near(rates({ type: 'cosine_with_restarts', totalSteps: 8, numCycles: 2 }, 10), [
      1,
      (1 + Math.SQRT1_2) / 2,
      0.5,
      (1 - Math.SQRT1_2) / 2,
      1,
      (1 + Math.SQRT1_2) / 2,
      0.5,
      (1 - Math.SQRT1_2) / 2,
      0,
      0,
    ])
    near(
      [0, 2, 4].map((step) => learningRate(step, { type: 'cosine_with_restarts', totalSteps: 4 })),
      [1, 0.5, 0],
    )
    near(
      [0, 2, 4].map((step) => learningRate(step, { type: 'cosine', totalSteps: 4, numCycles: 1 })),
      [1, 0, 1],
    )
  })

  it('goes down a polynomial to where it ends', () => {
    near(
      rates({ type: 'polynomial', totalSteps: 6, warmupSteps: 2, power: 2, rateEnd: 0.2 }, 9),
      [0, 0.5, 1, 0.65, 0.4, 0.25, 0.2, 0.2, 0.2],
    )
    near(rates({ type: 'polynomial', totalSteps: 4 }), rates({ type: 'linear', totalSteps: 4 }))
  })

  it('stays a number when the warm-up takes the whole run', () => {
    for (const type of ['linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'constant_with_warmup'] as const)
      for (const rate of rates({ type, totalSteps: 3, warmupSteps: 3 }, 6)) assert.ok(rate >= 0 && rate <= 1, `${type} ${rate}`)
  })
})
