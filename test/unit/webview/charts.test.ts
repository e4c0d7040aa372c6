import assert from 'node:assert/strict'
import { panelStrings } from '#shared/panelStrings.ts'
import { defaultSettings } from '#shared/panelProtocol.ts'
import { alignTables, nearestIndex, nearestValue } from '../../../webview/training/align.ts'
import { chartSpecs, readable } from '../../../webview/training/chartSpecs.ts'
import { chartData, curveColour, factsOf } from '../../../webview/training/curves.ts'
import {
  formatPosition,
  formatTicks,
  formatValue,
  formatWeight,
  positionOfWeight,
  weightOfPosition,
} from '../../../webview/training/format.ts'
import type { ShownRun } from '../../../webview/training/panelModel.ts'
import { noPoints } from '../../../webview/training/panelModel.ts'
import { byteIncrements, logSplits, wholeIncrements } from '../../../webview/training/ticks.ts'
import { moved, zoomed } from '../../../webview/training/zoom.ts'

const f64 = (...values: readonly number[]): Float64Array => Float64Array.from(values)

function run(id: string, more: Partial<ShownRun> = {}): ShownRun {
  return {
    info: { id, name: id, plannedBytes: 100, alive: true } as ShownRun['info'],
    steps: {
      x: f64(1, 2, 3),
      columns: { loss: f64(3, NaN, 1), memory_bytes: f64(50, 60, 60) },
      smoothed: { loss: f64(3, NaN, 2) },
      bucket: 1,
    },
    evals: noPoints,
    marks: [],
    extent: { min: 1, max: 3 },
    ceilings: {},
    ...more,
  }
}

describe('curves of a chart', () => {
  it('brings tables to common positions', () => {
    const a = { x: f64(1, 2, 4), curves: [f64(10, 20, NaN), f64(-1, 0, 1)] }
    const b = { x: f64(2, 3), curves: [f64(5, 6)] }
    assert.deepEqual(alignTables([a, b]), [
      [1, 2, 3, 4],
      [10, 20, null, null],
      [-1, 0, null, 1],
      [null, 5, 6, null],
    ])
    assert.deepEqual(alignTables([a, b], true)[2], [null, null, null, 1], 'a logarithmic axis has no place for 0')
    assert.deepEqual(alignTables([]), [[]])
    assert.deepEqual(
      alignTables([{ x: f64(1, 1, 2), curves: [f64(1, 2, 3)] }]),
      [
        [1, 1, 2],
        [1, 2, 3],
      ],
      'equal positions stay',
    )
  })

  it('finds what is nearest', () => {
    assert.deepEqual(
      [0, 1.4, 1.6, 9].map((value) => nearestIndex([1, 2, 3], value)),
      [0, 0, 1, 2],
    )
    assert.equal(nearestIndex([], 1), -1)
    assert.deepEqual(
      [0, 2, 3, 4].map((from) => nearestValue([null, 7, null, null, 8], from)),
      [1, 1, 4, 4],
    )
    assert.equal(nearestValue([null, undefined], 0), -1)
  })

  it('has raw and smoothed curves, evaluations and the plan', () => {
    const evaluated = run('a', { evals: { x: f64(2), columns: { eval_loss: f64(2.5) }, smoothed: {}, bucket: 1 } })
    const specs = chartSpecs([evaluated], panelStrings)
    const loss = chartData(specs[0]!, [{ run: evaluated, place: 0 }], defaultSettings)
    assert.deepEqual(
      loss.curves.map(({ role }) => role),
      ['raw', 'smoothed', 'points'],
    )
    assert.deepEqual(loss.aligned, [
      [1, 2, 3],
      [3, null, 1],
      [3, null, 2],
      [null, 2.5, null],
    ])
    assert.deepEqual(
      chartData(specs[0]!, [{ run: evaluated, place: 0 }], { ...defaultSettings, raw: false }).curves.map(({ role }) => role),
      ['smoothed', 'points'],
    )
    const memory = chartData(
      specs.find(({ id }) => id === 'memory')!,
      [{ run: evaluated, place: 0 }],
      defaultSettings,
    )
    assert.deepEqual(
      memory.curves.map(({ role }) => role),
      ['line', 'planned'],
    )
    assert.deepEqual(memory.aligned[2], [100, null, 100])
    assert.deepEqual(factsOf([1, 2, 3], [3, null, 1]), { last: 1, lastX: 3, lowest: 1, highest: 3 })
    assert.equal(factsOf([1], [null]), undefined)
  })

  it('tells runs apart by colour, and the curves of a single run', () => {
    const [a, b] = [run('a'), run('b', { ceilings: { loss: 4 } })]
    const spec = chartSpecs([a, b], panelStrings)[0]!
    const both = chartData(
      spec,
      [
        { run: a, place: 0 },
        { run: b, place: 3 },
      ],
      defaultSettings,
    )
    assert.deepEqual(
      both.curves.map((curve) => curveColour(curve, spec, true)),
      [0, 0, 3, 3],
    )
    assert.equal(both.ceiling, 4)
    const one = chartData(spec, [{ run: b, place: 3 }], defaultSettings)
    assert.deepEqual(
      one.curves.map((curve) => curveColour(curve, spec, false)),
      [3, 3],
    )
    assert.notEqual(one.structure, both.structure)
    const longer = run('b', { steps: { ...b.steps, x: f64(1, 2, 9) } })
    assert.equal(
      chartData(spec, [{ run: longer, place: 3 }], defaultSettings).structure,
      one.structure,
      'growing keeps the chart',
    )
  })

  it('has charts for what was measured, also for metrics that nobody knows', () => {
    const more = run('a', {
      steps: {
        ...noPoints,
        columns: {
          loss: f64(),
          gpu0_utilization: f64(),
          gpu1_utilization: f64(),
          gpu_memory_bytes: f64(),
          'rewards/margin': f64(),
        },
      },
      evals: { ...noPoints, columns: { eval_accuracy: f64() } },
    })
    const specs = chartSpecs([more], panelStrings)
    assert.deepEqual(
      specs.map(({ id }) => id),
      ['loss', 'evalLoss', 'learningRate', 'gradNorm', 'speed', 'memory', 'gpu', 'steps.rewards/margin', 'evals.eval_accuracy'],
    )
    assert.deepEqual(
      specs.find(({ id }) => id === 'gpu')!.curves.map(({ label }) => label),
      ['Gpu0 utilization', 'Gpu1 utilization'],
    )
    assert.equal(chartSpecs([run('a')], panelStrings).length, 6, 'no chart for a GPU that is not there')
    assert.equal(readable('rewards/margin_mean'), 'Rewards / margin mean')
  })
})

describe('numbers of a chart', () => {
  it('writes values in their units', () => {
    assert.equal(formatValue(1.7321, 'loss'), '1.732')
    assert.equal(formatValue(2e-4, 'rate'), '2e-4')
    assert.equal(formatValue(5_230, 'speed'), '5.23K')
    assert.equal(formatValue(83.456, 'speed'), '83.5')
    assert.equal(formatValue(2 ** 31, 'bytes'), '2.0 GB')
    assert.equal(formatValue(91.4, 'percent'), '91 %')
    assert.deepEqual(
      ['step', 'epoch', 'tokens', 'time'].map((axis) => formatPosition(1_240, axis as 'step')),
      ['1,240', '1240', '1.24K', '21 m'],
    )
    assert.equal(formatPosition(5e6, 'tokens'), '5M')
  })

  it('labels ticks with as many digits as tell them apart', () => {
    assert.deepEqual(formatTicks([1, 1.5, 2], 'loss'), ['1.0', '1.5', '2.0'])
    assert.deepEqual(formatTicks([1.23, 1.24], 'loss'), ['1.23', '1.24'])
    assert.deepEqual(formatTicks([2, 2.25, 2.5, 2.75], 'loss'), ['2.00', '2.25', '2.50', '2.75'])
    assert.deepEqual(formatTicks([0, 25, 50], 'loss'), ['0', '25', '50'])
    assert.deepEqual(formatTicks([0, 0.0001, 0.0002], 'rate'), ['0', '1e-4', '2e-4'])
    assert.deepEqual(formatTicks([0, 2_000, 4_000], 'speed'), ['0', '2K', '4K'])
    assert.deepEqual(formatTicks([0, 2 ** 30, null], 'bytes'), ['0 B', '1.0 GB', null])
    assert.deepEqual(formatTicks([0, 500_000, 1_500_000], 'number'), ['0', '500K', '1.5M'])
  })

  it('has logarithmic ticks for every range', () => {
    assert.deepEqual(
      logSplits(0.9, 150),
      [1, 10, 100].flatMap((power) => [power, 3 * power]).filter((value) => value <= 150),
    )
    assert.deepEqual(logSplits(1.1, 3.3), [1.5, 2, 2.5, 3])
    assert.deepEqual(logSplits(1e-6, 2e-4), [1e-6, 3e-6, 1e-5, 3e-5, 1e-4])
    assert.ok(logSplits(1e-12, 1e12).length <= 8)
    for (const [min, max] of [
      [1.0001, 1.0002],
      [3, 29],
      [1e-9, 1],
      [0.5, 0.51],
    ] as const) {
      const splits = logSplits(min, max)
      assert.ok(
        splits.length >= 2 && splits.length <= 12 && splits.every((value) => value >= min && value <= max),
        `${min} ${max}: ${splits}`,
      )
    }
    assert.deepEqual(logSplits(0, 1), [])
    assert.deepEqual(wholeIncrements.slice(0, 5), [1, 2, 5, 10, 20])
    assert.equal(byteIncrements[30], 2 ** 30)
  })

  it('spreads the slider so that long memories can be chosen', () => {
    assert.deepEqual([0, 1000 / 3, 2000 / 3, 1000].map(weightOfPosition), [0, 0.9, 0.99, 0.999])
    for (const weight of [0, 0.5, 0.9, 0.985, 0.999])
      assert.ok(Math.abs(weightOfPosition(positionOfWeight(weight)) - weight) < 0.003, String(weight))
    assert.equal(positionOfWeight(0.999), 1_000)
    assert.deepEqual([0, 0.9, 0.985, 0.999].map(formatWeight), ['0', '0.9', '0.985', '0.999'])
  })
})

describe('zooming', () => {
  const extent = { min: 0, max: 100 }

  it('keeps the place under the pointer', () => {
    assert.deepEqual(zoomed(extent, extent, 25, 0.5), { min: 12.5, max: 62.5 })
    assert.deepEqual(zoomed({ min: 20, max: 40 }, extent, 30, 2), { min: 10, max: 50 })
  })

  it('ends at everything, at the edges and at the limit of numbers', () => {
    assert.equal(zoomed({ min: 20, max: 90 }, extent, 30, 2), null)
    assert.deepEqual(zoomed({ min: 0, max: 20 }, extent, 20, 2), { min: 0, max: 40 })
    let range = extent
    for (let i = 0; i < 200; i++) range = zoomed(range, extent, 50, 0.5)!
    assert.ok(range.max > range.min)
    assert.deepEqual(moved({ min: 80, max: 95 }, extent, 1), { min: 85, max: 100 })
    assert.deepEqual(moved({ min: 10, max: 20 }, extent, -5), { min: 0, max: 10 })
  })
})
