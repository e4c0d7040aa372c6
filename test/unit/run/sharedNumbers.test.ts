import assert from 'node:assert/strict'
import { createSmoother, decodeMetric, encodeMetric, formatLearningRate, formatLoss, smooth } from '#shared/metrics.ts'
import { formatBytes, formatCompact, formatCount, formatDuration, formatPercent } from '#shared/units.ts'
import { stepRecord } from './support.ts'

describe('units', () => {
  it('formats bytes in steps of 1024', () => {
    const cases: [number, string][] = [
      [0, '0 B'],
      [512, '512 B'],
      [1024, '1.0 KB'],
      [1536, '1.5 KB'],
      [1024 ** 2 - 1, '1.0 MB'],
      [24 * 1024 ** 3, '24.0 GB'],
      [139.4 * 1024 ** 3, '139 GB'],
      [-2048, '−2.0 KB'],
      [NaN, '?'],
    ]
    for (const [bytes, text] of cases) assert.equal(formatBytes(bytes), text)
  })

  it('formats durations in at most two units', () => {
    const cases: [number, string][] = [
      [0, '0 ms'],
      [0.85, '850 ms'],
      [0.9996, '1.0 s'],
      [4.21, '4.2 s'],
      [42, '42 s'],
      [59.6, '1 m 00 s'],
      [185, '3 m 05 s'],
      [1080, '18 m'],
      [3599.9, '1 h 00 m'],
      [7620, '2 h 07 m'],
      [273600, '3 d 4 h'],
      [-1, '?'],
      [Infinity, '?'],
    ]
    for (const [seconds, text] of cases) assert.equal(formatDuration(seconds), text)
  })

  it('formats counts and shares', () => {
    assert.equal(formatCount(1240), '1,240')
    assert.equal(formatCount(1235814400), '1,235,814,400')
    assert.equal(formatCount(999), '999')
    assert.equal(formatCompact(1235814400), '1.24B')
    assert.equal(formatCompact(494032768), '494M')
    assert.equal(formatCompact(999.9e3), '1.00M')
    assert.equal(formatCompact(999), '999')
    assert.equal(formatPercent(0.0123), '1.23 %')
    assert.equal(formatPercent(1), '100 %')
    assert.equal(formatPercent(0), '0 %')
  })
})

describe('metrics', () => {
  it('smooths with bias correction', () => {
    const values = Float64Array.from({ length: 50 }, (_, i) => Math.sin(i) + 3)
    const weight = 0.9
    smooth(values, weight).forEach((shown, n) => {
      let sum = 0
      let weights = 0
      for (let i = 0; i <= n; i++) {
        sum += weight ** (n - i) * values[i]!
        weights += weight ** (n - i)
      }
      assert.ok(Math.abs(shown - sum / weights) < 1e-12)
    })
    assert.deepEqual([...smooth(values, 0)], [...values])
  })

  it('is a constant for a constant, from the first value on, and caps the weight', () => {
    for (const shown of smooth(new Float64Array(1000).fill(1.7), 2)) assert.ok(Math.abs(shown - 1.7) < 1e-12)
  })

  it('passes values that are not finite and forgets nothing', () => {
    const next = createSmoother(0.5)
    next(1)
    assert.ok(Number.isNaN(next(NaN)))
    assert.equal(next(Infinity), Infinity)
    assert.ok(Math.abs(next(1) - 1) < 1e-12)
  })

  it('writes and reads values that JSON lacks', () => {
    const line = encodeMetric({ ...stepRecord(3), loss: NaN, grad_norm: Infinity })
    assert.match(line, /"loss":"NaN","learning_rate"/)
    const record = decodeMetric(line)
    assert.ok(record?.type === 'step')
    assert.ok(Number.isNaN(record.loss))
    assert.equal(record.grad_norm, Infinity)
  })

  it('keeps every float32', () => {
    for (let i = 0; i < 200; i++) {
      const loss = Math.fround(Math.random() * 10 ** ((i % 12) - 6))
      const record = decodeMetric(encodeMetric({ ...stepRecord(1), loss }))
      assert.ok(record?.type === 'step')
      assert.equal(Math.fround(record.loss), loss)
    }
  })

  it('recognises what is not a record', () => {
    for (const line of ['', '{', 'null', '[]', '3', '{"type":"step"}', '{"type":"x","step":1}', '{"type":"event","step":1}']) {
      assert.equal(decodeMetric(line), undefined, line)
    }
  })

  it('formats losses and learning rates', () => {
    assert.deepEqual([1.7324, 0.042109, 12.349, 0, 1.2e9, NaN].map(formatLoss), [
      '1.732',
      '0.04211',
      '12.35',
      '0.0000',
      '1.20e+9',
      'NaN',
    ])
    assert.deepEqual([2e-4, 1.5e-5, 0, 1, 1.234e-4].map(formatLearningRate), ['2e-4', '1.5e-5', '0', '1e0', '1.23e-4'])
  })
})
