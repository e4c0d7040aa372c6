import type { Range } from '#shared/panelProtocol.ts'

/** The part of `extent` that lies `factor` times as wide around a point as `range` does; null for everything. */
export function zoomed(range: Range, extent: Range, around: number, factor: number): Range | null {
  const width = (range.max - range.min) * factor
  const whole = extent.max - extent.min
  if (width >= whole) return null
  // Closer than this, the numbers of the axis could not be told apart.
  if (!(width > Math.max(Math.abs(around), 1) * 1e-9)) return range
  const share = (around - range.min) / (range.max - range.min)
  return within({ min: around - share * width, max: around + (1 - share) * width }, extent)
}

/** The same width, moved by a share of it, within `extent`. */
export function moved(range: Range, extent: Range, share: number): Range {
  const by = (range.max - range.min) * share
  return within({ min: range.min + by, max: range.max + by }, extent)
}

function within({ min, max }: Range, extent: Range): Range {
  const back = Math.max(0, max - extent.max) + Math.min(0, min - extent.min)
  return { min: min - back, max: max - back }
}
