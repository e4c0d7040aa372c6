/** Text from untrusted files, made safe and short for messages and terminals; sizes and counts for people. */

/** Control, format and separator characters can move the cursor or reorder what is shown. */
const unsafe = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu

/** The text with every character that a terminal would interpret written as an escape. */
export function printable(text: string, limit = 200): string {
  const cut = text.length > limit ? `${text.slice(0, limit - 1)}…` : text
  return cut.replace(unsafe, (character) => `\\u${character.codePointAt(0)!.toString(16).padStart(4, '0')}`)
}

/** A name in double quotes, printable. */
export const quote = (name: string, limit = 120): string => `"${printable(name, limit)}"`

/** Bytes in decimal units as disks and the Hub count them: 999 B, 1.5 kB, 16.1 GB. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
  let unit = 0
  let value = bytes
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${units[unit]}`
}

/** A count with thousands separators: 1,235,814,400. */
export const formatCount = (count: number): string => count.toLocaleString('en-US')

/** A count in short form as model names have it: 494.0M, 1.24B. */
export function formatShortCount(count: number): string {
  if (count >= 1e12) return `${(count / 1e12).toFixed(2)}T`
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)}B`
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)}M`
  if (count >= 1e3) return `${(count / 1e3).toFixed(1)}K`
  return String(count)
}
