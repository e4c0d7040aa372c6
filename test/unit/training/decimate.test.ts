import assert from 'node:assert/strict'
import { bucketExtremes, bucketPositions, bucketSize, lowerBound, pointCount, quantile } from '#shared/decimate.ts'

const noisy = (length: number): Float64Array => Float64Array.from({ length }, (_, i) => (Math.sin(i * 12.9898) * 43_758.5453) % 1)
const x = (length: number): Float64Array => Float64Array.from({ length }, (_, i) => i + 1)

describe('thinning out', () => {
  it('keeps every row while there are few, and else stays within the budget', () => {
    for (const rows of [0, 1, 100, 3_000, 3_001, 12_345, 1_000_000]) {
      const bucket = bucketSize(rows, 3_000)
      assert.ok(pointCount(0, rows, bucket) <= 3_000, `${rows} rows`)
      if (rows <= 3_000) assert.equal(bucket, 1)
      else assert.ok(pointCount(0, rows, bucket) > 700, `${rows} rows are not thinned out more than needed`)
    }
  })

  it('shows the extremes of every bucket in their order, at its first and last position', () => {
    const values = Float64Array.of(3, 1, 2, 9, /**/ 5, 8, 4, 6, /**/ 7)
    assert.deepEqual([...bucketExtremes(values, 0, 9, 4)], [1, 9, 8, 4, 7])
    assert.deepEqual([...bucketPositions(x(9), 0, 9, 4)], [1, 4, 5, 8, 9])
    assert.equal(pointCount(0, 9, 4), 5)
  })

  it('never loses a spike, for any start and length', () => {
    const values = noisy(5_000)
    for (const [first, end, bucket] of [
      [0, 5_000, 8],
      [64, 4_999, 64],
      [8, 9, 8],
      [512, 4_000, 256],
    ] as const) {
      const points = bucketExtremes(values, first, end, bucket)
      assert.equal(points.length, pointCount(first, end, bucket))
      assert.equal(bucketPositions(x(5_000), first, end, bucket).length, points.length)
      assert.equal(Math.max(...points), Math.max(...values.subarray(first, end)))
      assert.equal(Math.min(...points), Math.min(...values.subarray(first, end)))
    }
  })

  it('leaves out what is not finite, and says so where there is nothing else', () => {
    const values = Float64Array.of(NaN, 2, Infinity, 1, /**/ NaN, NaN, -Infinity, NaN, /**/ Infinity, 3, NaN, NaN)
    assert.deepEqual([...bucketExtremes(values, 0, 12, 4)], [2, 1, NaN, NaN, 3, 3])
    assert.deepEqual([...bucketExtremes(Float64Array.of(1, Infinity, NaN), 0, 3, 1)], [1, NaN, NaN])
  })

  it('does not change complete buckets when rows come', () => {
    const values = noisy(1_000)
    const before = bucketExtremes(values, 0, 700, 16)
    const after = bucketExtremes(values, 0, 1_000, 16)
    const complete = 2 * Math.floor(700 / 16)
    assert.deepEqual(after.subarray(0, complete), before.subarray(0, complete))
  })

  it('finds places and quantiles', () => {
    const sorted = Float64Array.of(1, 2, 2, 5, 9, 100)
    assert.deepEqual(
      [0, 2, 3, 9, 10].map((value) => lowerBound(sorted, 5, value)),
      [0, 1, 3, 4, 5],
    )
    assert.equal(quantile(Float64Array.of(5, NaN, 1, 3, Infinity), 0, 5, 0.5), 3)
    assert.equal(quantile(Float64Array.of(0, 10), 0, 2, 0.95), 9.5)
    assert.ok(Number.isNaN(quantile(Float64Array.of(NaN), 0, 1, 0.5)))
    const many = Float64Array.from({ length: 1_000_000 }, (_, i) => i)
    assert.ok(Math.abs(quantile(many, 0, many.length, 0.99) - 990_000) < 200)
  })
})
