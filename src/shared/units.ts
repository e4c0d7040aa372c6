/** Numbers as people read them, the same in terminal, editor and log. */

const byteUnits = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'] as const

/**
 * A size of memory or of a file: 512 B, 1.5 KB, 23.6 GB. Steps of 1024, labelled as graphics cards and the editor label
 * them (a "24 GB" card has 24·2³⁰ bytes), so that a plan can be compared with the figure on the box.
 */
export function formatBytes(bytes: number): string {
  if (!Number.isFinite(bytes)) return '?'
  let unit = 0
  let value = Math.abs(bytes)
  while (value >= 1023.95 && unit < byteUnits.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1
  return `${bytes < 0 ? '−' : ''}${value.toFixed(digits)} ${byteUnits[unit]}`
}

/** A span of time, two units at most: 850 ms, 4.2 s, 42 s, 3 m 05 s, 18 m, 2 h 07 m, 3 d 4 h. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return '?'
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  if (whole < 600) return `${Math.floor(whole / 60)} m ${pad(whole % 60)} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return `${minutes} m`
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} m`
  const hours = Math.round(seconds / 3600)
  return `${Math.floor(hours / 24)} d ${hours % 24} h`
}

/** A whole number with thousands separators: 1,240. */
export function formatCount(count: number): string {
  if (!Number.isFinite(count)) return '?'
  const digits = Math.round(Math.abs(count)).toFixed(0)
  return (count < 0 ? '−' : '') + digits.replace(/\B(?=(\d{3})+$)/g, ',')
}

const compactUnits: readonly (readonly [number, string])[] = [
  [1e12, 'T'],
  [1e9, 'B'],
  [1e6, 'M'],
  [1e3, 'K'],
]

/** A large number in three significant digits, as model names have it: 494M, 1.24B, 32.8K. */
export function formatCompact(count: number): string {
  if (!Number.isFinite(count)) return '?'
  const size = Math.abs(count)
  for (const [scale, name] of compactUnits) {
    if (size < scale * 0.9995) continue
    const value = size / scale
    return `${count < 0 ? '−' : ''}${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)}${name}`
  }
  return formatCount(count)
}

/** A share of one: 0.0123 → 1.23 %. */
export function formatPercent(share: number): string {
  if (!Number.isFinite(share)) return '?'
  const percent = share * 100
  const size = Math.abs(percent)
  return `${percent.toFixed(size === 0 || size >= 99.95 ? 0 : size >= 9.95 ? 1 : 2)} %`
}

const pad = (value: number): string => String(value).padStart(2, '0')
