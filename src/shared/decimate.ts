/**
 * Thinning out of long series for a chart. Rows are taken together in buckets of 2^k rows whose edges are multiples of the
 * bucket size, so that the points of complete buckets never change while the series grows: updates are short tails, and
 * the picture does not shimmer. A bucket shows its smallest and its largest value in the order in which they came, at the
 * positions of its first and last row: no spike is lost, and all columns of a table share their positions.
 */

/** The most points of one redraw, over all runs of a chart. */
export const maxChartPoints = 4_000

/**
 * Rows per bucket with which `rows` rows give at most `maxPoints` points: 1 (every row is its own point), else a power of
 * two from 4. With 2 rows per bucket nothing would be saved.
 */
export function bucketSize(rows: number, maxPoints: number): number {
  if (rows <= maxPoints) return 1
  let size = 4
  // One bucket more than full ones fit: the range may begin and end within a bucket.
  while (2 * (Math.floor(rows / size) + 2) > maxPoints && size < rows) size *= 2
  return size
}

/** How many points the rows [first, end) give; `first` is a multiple of the bucket size. */
export function pointCount(first: number, end: number, bucket: number): number {
  const rows = Math.max(0, end - first)
  if (bucket === 1) return rows
  const rest = rows % bucket
  return 2 * ((rows - rest) / bucket) + Math.min(rest, 2)
}

/** The positions of the points of rows [first, end): first and last of every bucket. */
export function bucketPositions(x: Float64Array, first: number, end: number, bucket: number): Float64Array {
  if (bucket === 1) return x.slice(first, end)
  const positions = new Float64Array(pointCount(first, end, bucket))
  let at = 0
  for (let start = first; start < end; start += bucket) {
    const last = Math.min(start + bucket, end) - 1
    positions[at++] = x[start]!
    if (last > start) positions[at++] = x[last]!
  }
  return positions
}

/** The values of the points of rows [first, end). Values that are not finite are left out; a bucket of none but such is NaN. */
export function bucketExtremes(values: Float64Array, first: number, end: number, bucket: number): Float64Array {
  if (bucket === 1) return finiteCopy(values, first, end)
  const points = new Float64Array(pointCount(first, end, bucket))
  let at = 0
  for (let start = first; start < end; start += bucket) {
    const stop = Math.min(start + bucket, end)
    let low = Infinity
    let high = -Infinity
    let lowAt = start
    let highAt = start
    for (let row = start; row < stop; row++) {
      const value = values[row]!
      // Comparisons with NaN are false; the infinities are left out below.
      if (value < low && value !== -Infinity) {
        low = value
        lowAt = row
      }
      if (value > high && value !== Infinity) {
        high = value
        highAt = row
      }
    }
    const none = low === Infinity || high === -Infinity
    const lowFirst = lowAt <= highAt
    points[at++] = none ? NaN : lowFirst ? low : high
    if (stop - start > 1) points[at++] = none ? NaN : lowFirst ? high : low
  }
  return points
}

function finiteCopy(values: Float64Array, first: number, end: number): Float64Array {
  const copy = values.slice(first, end)
  for (let i = 0; i < copy.length; i++) if (!Number.isFinite(copy[i])) copy[i] = NaN
  return copy
}

/** The first index of a non-decreasing series whose value is not below `value`; `length` when there is none. */
export function lowerBound(sorted: Float64Array, length: number, value: number): number {
  let low = 0
  let high = length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (sorted[middle]! < value) low = middle + 1
    else high = middle
  }
  return low
}

/** At most this many values are sorted for a quantile. */
const quantileSample = 20_000

/** A quantile (0 to 1) of the finite values in [first, end), from an even sample when there are many; NaN when there are none. */
export function quantile(values: Float64Array, first: number, end: number, share: number): number {
  const stride = Math.max(1, Math.floor((end - first) / quantileSample))
  const sample: number[] = []
  for (let i = first; i < end; i += stride) if (Number.isFinite(values[i])) sample.push(values[i]!)
  if (sample.length === 0) return NaN
  const sorted = Float64Array.from(sample).sort()
  const at = share * (sorted.length - 1)
  const below = Math.floor(at)
  const low = sorted[below]!
  return low + (at - below) * (sorted[Math.min(below + 1, sorted.length - 1)]! - low)
}
