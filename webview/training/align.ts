/** Curves that share their positions. */
export interface CurveTable {
  /** Never decreasing. */
  readonly x: Float64Array
  readonly curves: readonly Float64Array[]
}

/** Positions, then one list per curve in the order of the tables; null where a curve has no value there. */
export type AlignedCurves = [number[], ...(number | null)[][]]

/**
 * Brings tables with positions of their own to common ones, as the chart needs them. Rows of different tables at the same
 * position become one. `positiveOnly` is for logarithmic axes: other values have no place there.
 */
export function alignTables(tables: readonly CurveTable[], positiveOnly = false): AlignedCurves {
  const x: number[] = []
  const columns: (number | null)[][] = tables.flatMap(({ curves }) => curves.map(() => []))
  const offsets: number[] = []
  let count = 0
  for (const { curves } of tables) {
    offsets.push(count)
    count += curves.length
  }
  const next = tables.map(() => 0)
  for (;;) {
    let position = Infinity
    for (let t = 0; t < tables.length; t++) {
      const at = tables[t]!.x[next[t]!]
      if (at !== undefined && at < position) position = at
    }
    if (position === Infinity) return [x, ...columns]
    const row = x.push(position) - 1
    for (let t = 0; t < tables.length; t++) {
      const { x: positions, curves } = tables[t]!
      const here = positions[next[t]!] === position
      for (let c = 0; c < curves.length; c++) {
        const value = here ? curves[c]![next[t]!]! : NaN
        columns[offsets[t]! + c]![row] = Number.isFinite(value) && !(positiveOnly && value <= 0) ? value : null
      }
      if (here) next[t]!++
    }
  }
}

/** The index of the position nearest to `value`; −1 for none. */
export function nearestIndex(x: ArrayLike<number>, value: number): number {
  let low = 0
  let high = x.length - 1
  if (high < 0) return -1
  while (low < high) {
    const middle = (low + high) >>> 1
    if (x[middle]! < value) low = middle + 1
    else high = middle
  }
  return low > 0 && value - x[low - 1]! < x[low]! - value ? low - 1 : low
}

/** The index nearest to `from` at which the curve has a value; −1 for none. */
export function nearestValue(curve: ArrayLike<number | null | undefined>, from: number): number {
  const has = (i: number): boolean => Number.isFinite(curve[i] ?? NaN)
  for (let distance = 0; from - distance >= 0 || from + distance < curve.length; distance++) {
    if (has(from - distance)) return from - distance
    if (has(from + distance)) return from + distance
  }
  return -1
}
