import assert from 'node:assert/strict'
import { smooth } from '#shared/metrics.ts'
import type { PanelSettings, RunDelta, RunInfo, Viewport } from '#shared/panelProtocol.ts'
import { defaultSettings } from '#shared/panelProtocol.ts'
import { RunSeries } from '../../../src/training/runSeries.ts'
import { SeriesView } from '../../../src/training/seriesView.ts'
import { PanelModel } from '../../../webview/training/panelModel.ts'
import { batch, lossBatch } from './support.ts'
import { processorTime } from '../../machineTime.ts'

const wide: Viewport = { range: null, width: 1_000 }
const settings = (some: Partial<PanelSettings> = {}): PanelSettings => ({ ...defaultSettings, ...some })

/** The host's view and the panel's model at the two ends of a line. */
function line(series: RunSeries, first: Viewport = wide, some: Partial<PanelSettings> = {}) {
  const view = new SeriesView(series, settings(some), first)
  const model = new PanelModel()
  const info = { id: 'run' } as RunInfo
  model.apply({ type: 'hydrate', strings: {}, now: 0, runs: [info], data: [] })
  const send = (viewport = first, changed = some): RunDelta | undefined => {
    view.look(settings(changed), viewport, 1)
    // As the editor copies it.
    const delta = structuredClone(view.delta('run'))
    if (delta !== undefined) model.apply({ type: 'update', view: 0, now: 0, data: [delta] })
    return delta
  }
  return { view, send, shown: () => model.run('run')! }
}

/** What a view that begins now would show. */
function anew(series: RunSeries, viewport: Viewport, some: Partial<PanelSettings> = {}) {
  const fresh = line(series, viewport, some)
  fresh.send()
  return fresh.shown()
}

describe('a run as a panel looks at it', () => {
  it('sends few rows whole, with their moving average at full resolution', () => {
    const series = new RunSeries()
    series.append(lossBatch(300))
    const { send } = line(series)
    const delta = send()!
    assert.equal(delta.steps!.keep, 0)
    assert.equal(delta.steps!.bucket, 1)
    assert.deepEqual(Object.keys(delta.steps!.columns), ['loss', 'learning_rate'])
    assert.deepEqual(delta.steps!.columns.loss, series.steps.column('loss')!.slice(0, 300))
    assert.deepEqual(delta.steps!.smoothed.loss, smooth(series.steps.column('loss')!.slice(0, 300), 0.9))
    assert.equal(delta.steps!.smoothed.learning_rate, undefined)
    assert.equal(send(), undefined, 'nothing new, nothing sent')
  })

  it('averages before it thins out', () => {
    const series = new RunSeries()
    series.append(lossBatch(100_000))
    const { smoothed, bucket } = line(series, wide, { smoothing: 0.999 }).send()!.steps!
    const exact = smooth(series.steps.column('loss')!.slice(0, 100_000), 0.999)
    const tail = exact.subarray(100_000 - (100_000 % bucket || bucket))
    assert.equal(Math.max(...smoothed.loss!.subarray(-2)), Math.max(...tail))
  })

  it('is the same in tails as anew, however the run grows', () => {
    const series = new RunSeries()
    const { send, shown } = line(series)
    let replaced = 0
    for (let step = 0, i = 0; step < 20_000; i++) {
      const count = [1, 3, 250, 1_000, 7][i % 5]!
      series.append(lossBatch(count, step))
      if (i % 4 === 0) series.append(batch({ evals: { step: [step + count], eval_loss: [step] } }))
      step += count
      const delta = send()!
      if (delta.steps!.keep === 0) replaced++
      else assert.ok(delta.steps!.x.length <= count + 2 * delta.steps!.bucket)
      const fresh = anew(series, wide)
      assert.deepEqual(shown().steps, fresh.steps)
      assert.deepEqual(shown().evals, fresh.evals)
      assert.deepEqual(shown().extent, fresh.extent)
    }
    assert.ok(replaced < 8, `${replaced} times everything was sent`)
  })

  it('shows every row of a part, with a row at either side', () => {
    const series = new RunSeries()
    series.append(lossBatch(500_000))
    const { send, shown } = line(series)
    send()
    assert.ok(shown().steps.bucket > 100)
    const part = { range: { min: 1_000.5, max: 1_500 }, width: 1_000 }
    send(part)
    assert.equal(shown().steps.bucket, 1)
    assert.deepEqual([shown().steps.x[0], shown().steps.x.at(-1)], [1_000, 1_501])
    send({ range: { min: 100_000, max: 300_000 }, width: 1_000 })
    const { x } = shown().steps
    assert.ok(x[0]! <= 100_000 && x.at(-1)! >= 300_000 && x.length <= 3_000)
  })

  it('leaves the points of a part alone while the run grows behind it', () => {
    const series = new RunSeries()
    series.append(lossBatch(10_000))
    const part = { range: { min: 10, max: 900 }, width: 1_000 }
    const { send } = line(series, part)
    send()
    series.append(lossBatch(100, 10_000))
    assert.equal(send()?.steps, undefined)
  })

  it('begins anew after a resume from an earlier step', () => {
    const series = new RunSeries()
    const { send, shown } = line(series)
    series.append(lossBatch(400))
    send()
    series.clear()
    series.append(lossBatch(250))
    assert.equal(send()!.steps!.keep, 0)
    assert.equal(shown().steps.x.length, 250)
    assert.deepEqual(shown().extent, { min: 1, max: 250 })
    series.clear()
    send()
    assert.equal(shown().steps.x.length, 0, 'an empty file empties the chart')
  })

  it('has columns that come later', () => {
    const series = new RunSeries()
    series.append(lossBatch(10))
    const { send, shown } = line(series)
    send()
    series.append(batch({ steps: { step: [11], loss: [1], reward: [5] } }))
    send()
    assert.deepEqual([...shown().steps.columns.reward!.subarray(-2)], [NaN, 5])
    assert.equal(shown().steps.columns.loss!.length, 11)
  })

  it('marks events and steps that were not finite, and only those in view', () => {
    const series = new RunSeries()
    series.append(
      batch({
        steps: { step: [1, 2, 3, 4], loss: [1, NaN, 1, 1] },
        events: [
          { type: 'event', event: 'start', step: 0, time: 0 },
          { type: 'event', event: 'checkpoint', step: 3, time: 0, path: 'x' },
          { type: 'event', event: 'resume', step: 3, time: 0, message: 'again' },
        ],
      }),
    )
    const { send, shown } = line(series)
    send()
    assert.deepEqual(shown().marks, [
      { kind: 'non_finite', step: 2, x: 2 },
      { kind: 'checkpoint', step: 3, x: 3 },
      { kind: 'resume', step: 3, x: 3, message: 'again' },
    ])
    send({ range: { min: 1.5, max: 2.5 }, width: 1_000 })
    assert.deepEqual(
      shown().marks.map(({ kind }) => kind),
      ['non_finite'],
    )
    send({ range: { min: 3.5, max: 4 }, width: 1_000 })
    assert.deepEqual(shown().marks, [])
  })

  it('shows a bounded number of marks, the last one always among them', () => {
    const series = new RunSeries()
    series.append(lossBatch(100))
    const events = Array.from({ length: 5_000 }, (_, i) => ({ type: 'event', event: 'checkpoint', step: i, time: 0 }) as const)
    series.append(batch({ events: [...events, { type: 'event', event: 'fail', step: 5_000, time: 0 }] }))
    const { marks } = line(series).send()!
    assert.ok(marks!.length <= 402 && marks!.length > 300, String(marks!.length))
    assert.ok(marks!.some(({ kind }) => kind === 'fail') && marks!.some(({ step }) => step === 4_999))
  })

  it('tells the ends of the axes when outliers are clipped', () => {
    const series = new RunSeries()
    series.append(
      batch({ steps: { step: Array.from({ length: 101 }, (_, i) => i), loss: Array.from({ length: 101 }, (_, i) => i) } }),
    )
    const { send, shown } = line(series)
    send()
    assert.deepEqual(shown().ceilings, {})
    assert.equal(send(wide, { clip: 'p95' })?.steps, undefined, 'the points stay')
    assert.deepEqual(shown().ceilings, { loss: 95 })
    send(wide, { clip: 'none' })
    assert.deepEqual(shown().ceilings, {})
  })

  it('turns a million rows into a picture in a moment', async () => {
    const series = new RunSeries()
    series.append(lossBatch(1_000_000))
    const { send } = line(series)
    let delta: ReturnType<typeof send>
    const complete = await processorTime(() => (delta = send()))
    series.append(lossBatch(10, 1_000_000))
    const tail = await processorTime(() => send())
    assert.ok(delta!.steps!.x.length <= 3_000)
    // Some 40 and 1 ms; the bounds only tell a change of the kind of work.
    assert.ok(complete < 600, `${complete} ms for everything`)
    assert.ok(tail < 60, `${tail} ms for a tail`)
  })
})
