/** Values of other programs' files, read as leniently as those programs do. */
export const isMapping = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

export const isTrue = (value: unknown): boolean =>
  value === true || (typeof value === 'string' && /^(?:true|yes|on)$/i.test(value))
export const isFalse = (value: unknown): boolean =>
  value === false || (typeof value === 'string' && /^(?:false|no|off)$/i.test(value))

/** A number, also one in quotes. */
export function asNumber(value: unknown): number | undefined {
  const number = typeof value === 'number' ? value : typeof value === 'string' && value.trim() !== '' ? Number(value) : NaN
  return Number.isFinite(number) ? number : undefined
}

/** Names in a list or in a text with commas. */
export function asNames(value: unknown): string[] {
  const parts = Array.isArray(value) ? value : typeof value === 'string' ? value.split(',') : []
  return parts
    .filter((part): part is string => typeof part === 'string')
    .map((part) => part.trim())
    .filter((part) => part !== '')
}

export const isEmpty = (value: unknown): boolean =>
  value === null ||
  value === undefined ||
  value === '' ||
  (Array.isArray(value) && value.length === 0) ||
  (isMapping(value) && Object.keys(value).length === 0)

/** Whether a text names a file here rather than a repository of the Hub. */
export const isFile = (name: string): boolean =>
  /\.(?:jsonl?|csv|tsv|txt|parquet|arrow)(?:\.gz)?$/i.test(name) || /^(?:\.{1,2}|~)?\//.test(name)
