import { formatLearningRate, formatLoss } from '#shared/metrics.ts'
import type { XAxis } from '#shared/panelProtocol.ts'
import { maxSmoothing } from '#shared/panelProtocol.ts'
import { formatBytes, formatCompact, formatCount, formatDuration } from '#shared/units.ts'
import type { Unit } from './chartSpecs.ts'

/** A value of a chart as text. */
export function formatValue(value: number, unit: Unit): string {
  switch (unit) {
    case 'loss':
      return formatLoss(value)
    case 'rate':
      return formatLearningRate(value)
    case 'speed':
      return Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : formatCompact(value)
    case 'bytes':
      return formatBytes(value)
    case 'percent':
      return `${Math.round(value)} %`
    case 'degrees':
      return `${Math.round(value)} °C`
    case 'watts':
      return `${Math.round(value)} W`
    case 'number':
      return formatLoss(value)
  }
}

/** Labels of an axis' ticks: as many digits as tell them apart. */
export function formatTicks(splits: readonly (number | null)[], unit: Unit): (string | null)[] {
  const values = splits.filter((value) => value !== null)
  const step = values.length > 1 ? Math.abs(values[1]! - values[0]!) : Math.abs(values[0] ?? 1)
  const largest = Math.max(0, ...values.map(Math.abs))
  const digits = digitsOf(step || 1)
  const plain = (value: number): string =>
    largest >= 1e5 ? compact(value) : largest > 0 && largest < 1e-3 ? formatLearningRate(value) : value.toFixed(digits)
  return splits.map((value) => {
    if (value === null) return null
    if (unit === 'rate') return formatLearningRate(Number(value.toPrecision(6)))
    if (unit === 'bytes') return formatBytes(value)
    if (unit === 'percent') return `${value} %`
    if (unit === 'degrees') return `${value} °C`
    if (unit === 'watts') return `${value} W`
    if (unit === 'speed' && largest >= 1000) return compact(value)
    return plain(value)
  })
}

/** Digits behind the point that write every multiple of a distance as it is: 2 for 0.25. */
function digitsOf(step: number): number {
  let digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))
  const rest = (scaled: number): number => Math.abs(scaled - Math.round(scaled)) / scaled
  while (digits < 8 && rest(step * 10 ** digits) > 1e-6) digits++
  return digits
}

/** 6.00K → 6K. */
const compact = (value: number): string =>
  formatCompact(value).replace(/\.(\d*?)0+(?=\D*$)/, (_zeros, digits: string) => (digits === '' ? '' : `.${digits}`))

/** Labels of a logarithmic axis. */
export const formatLogTicks = (splits: readonly (number | null)[], unit: Unit): (string | null)[] =>
  splits.map((value) => (value === null ? null : unit === 'rate' ? formatLearningRate(value) : trimmed(value)))

const trimmed = (value: number): string =>
  value >= 1e5 ? compact(value) : value < 1e-3 ? formatLearningRate(value) : String(Number(value.toPrecision(4)))

/** A position on the x axis as text. */
export function formatPosition(x: number, axis: XAxis): string {
  switch (axis) {
    case 'step':
      return formatCount(x)
    case 'epoch':
      return String(Number(x.toFixed(3)))
    case 'tokens':
      return compact(x)
    case 'time':
      return formatDuration(x)
  }
}

/**
 * The slider's positions (0 to 1000) as weights: 1 − 10^(−3p), so that its upper part, where a little more weight makes a
 * much longer memory, is as fine as its lower part.
 */
export const weightOfPosition = (position: number): number =>
  position >= 1000 ? maxSmoothing : position <= 0 ? 0 : Number((1 - 10 ** (-3 * (position / 1000))).toFixed(4))

export const positionOfWeight = (weight: number): number =>
  Math.round((-1000 / 3) * Math.log10(1 - Math.min(Math.max(weight, 0), maxSmoothing)))

/** A weight as text: 0.9, 0.985, 0.999. */
export const formatWeight = (weight: number): string => String(Number(weight.toFixed(weight > 0.99 ? 4 : weight > 0.9 ? 3 : 2)))
