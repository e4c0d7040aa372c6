import assert from 'node:assert/strict'
import { RunSeries, SeriesTable } from '../../../src/training/runSeries.ts'
import { batch, columns, lossBatch } from './support.ts'

describe('metrics in memory', () => {
  it('takes in columns that come later, and grows', () => {
    const table = new SeriesTable()
    table.append(columns({ step: [1, 2], loss: [3, 2] }))
    table.append(
      columns({ step: Array.from({ length: 5_000 }, (_, i) => i + 3), reward: Array.from({ length: 5_000 }, () => 7) }),
    )
    assert.equal(table.length, 5_002)
    assert.deepEqual([...table.keys], ['step', 'loss', 'reward'])
    assert.deepEqual([...table.column('loss')!.subarray(0, 3)], [3, 2, NaN])
    assert.deepEqual([...table.column('reward')!.subarray(1, 3)], [NaN, 7])
    assert.equal(table.last('step'), 5_002)
    assert.ok(Number.isNaN(table.last('nothing')))
  })

  it('has positions that never decrease, whatever the file says', () => {
    const series = new RunSeries()
    series.append(batch({ steps: { step: [1, 2, 3], epoch: [NaN, 0.5, 0.4], loss: [1, 1, 1] } }))
    assert.deepEqual([...series.positions('epoch').subarray(0, 3)], [0, 0.5, 0.5])
    assert.deepEqual([...series.positions('tokens').subarray(0, 3)], [0, 0, 0])
    series.append(batch({ steps: { step: [2, 4], epoch: [0.7, 0.8], loss: [1, 1] } }))
    assert.deepEqual([...series.positions('step').subarray(0, 5)], [1, 2, 3, 3, 4])
    assert.deepEqual([...series.positions('epoch').subarray(0, 5)], [0, 0.5, 0.5, 0.7, 0.8])
  })

  it('counts working time, without the break before a resume', () => {
    const series = new RunSeries()
    series.append(
      batch({
        steps: { step: [1, 2], loss: [1, 1], time: [11_000, 12_000] },
        events: [{ type: 'event', event: 'start', step: 0, time: 10_000 }],
      }),
    )
    assert.deepEqual([...series.positions('time').subarray(0, 2)], [1, 2])
    series.append(
      batch({
        steps: { step: [3, 4], loss: [1, 1], time: [9_000_500, 9_001_000] },
        events: [{ type: 'event', event: 'resume', step: 2, time: 9_000_000 }],
      }),
    )
    assert.deepEqual([...series.positions('time').subarray(0, 4)], [1, 2, 2.5, 3])
  })

  it('places steps between rows', () => {
    const series = new RunSeries()
    series.append(
      batch({
        steps: { step: [10, 20], num_tokens: [1_000, 3_000], loss: [1, 1] },
        evals: { step: [15, 30], eval_loss: [2, 2] },
      }),
    )
    assert.deepEqual(
      [5, 10, 15, 20, 30].map((step) => series.positionOf(step, 'tokens')),
      [1_000, 1_000, 2_000, 3_000, 3_000],
    )
    assert.deepEqual([...series.evalPositions('tokens')], [2_000, 3_000])
    assert.deepEqual(series.extent('step'), { min: 10, max: 30 })
    assert.equal(new RunSeries().extent('step'), null)
  })

  it('knows the steps that were not finite, each once', () => {
    const series = new RunSeries()
    series.append(
      batch({
        steps: { step: [1, 2, 3], loss: [1, NaN, Infinity] },
        events: [{ type: 'event', event: 'non_finite', step: 2, time: 0 }],
      }),
    )
    assert.deepEqual(series.nonFiniteSteps, [2, 3])
    series.clear()
    assert.equal(series.nonFiniteCount, 0)
    assert.equal(series.generation, 1)
    series.append(lossBatch(3))
    assert.equal(series.positions('time')[2], 1, 'the clock begins anew')
  })
})
