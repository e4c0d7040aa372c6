/** JSON as Python's `json.dumps` writes it, so that our files are byte for byte what the Python libraries would write. */

/** A number that Python holds as float and writes with a fraction or an exponent: 0.0, 1e-06. */
export class PyFloat {
  readonly value: number
  constructor(value: number) {
    this.value = value
  }
}

export interface PythonJsonOptions {
  /** Spaces per level (default 2); `undefined` when given: one line with ", " and ": ". */
  readonly indent?: number | undefined
  /** Default true. */
  readonly sortKeys?: boolean
}

/** Python's `repr(float)`: the shortest digits that read back; an exponent below 1e-4 and from 1e16. */
export function pythonFloat(value: number): string {
  if (Number.isNaN(value)) return 'NaN'
  if (!Number.isFinite(value)) return value > 0 ? 'Infinity' : '-Infinity'
  if (value === 0) return Object.is(value, -0) ? '-0.0' : '0.0'
  const [mantissa, power] = value.toExponential().split('e') as [string, string]
  const exponent = Number(power)
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, '0')
    return `${mantissa}e${exponent < 0 ? '-' : '+'}${digits}`
  }
  const sign = value < 0 ? '-' : ''
  const digits = mantissa.replace('-', '').replace('.', '')
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0')
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`
}

function pythonString(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

/** Orders strings by code point, as Python and Rust do (JavaScript's own order is by UTF-16 unit). */
export function compareCodePoints(left: string, right: string): number {
  if (left === right) return 0
  let i = 0
  while (i < left.length && left.charCodeAt(i) === right.charCodeAt(i)) i++
  if (i === left.length || i === right.length) return left.length - right.length
  const a = left.charCodeAt(i)
  const b = right.charCodeAt(i)
  // A surrogate stands for a code point above every single unit, so it sorts after U+E000…U+FFFF.
  const rank = (unit: number): number => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit)
  return rank(a) - rank(b)
}

/** `json.dumps(value, indent=2, sort_keys=True)` of objects and Maps; undefined members are left out, whole numbers are ints. */
export function pythonJson(value: unknown, options: PythonJsonOptions = {}): string {
  const indent = 'indent' in options ? options.indent : 2
  const sort = options.sortKeys ?? true
  const block = (open: string, close: string, items: string[], depth: number): string => {
    if (items.length === 0) return open + close
    if (indent === undefined) return open + items.join(', ') + close
    const line = `\n${' '.repeat(indent * (depth + 1))}`
    return `${open}${line}${items.join(`,${line}`)}\n${' '.repeat(indent * depth)}${close}`
  }
  const write = (item: unknown, depth: number): string => {
    if (item === null || item === undefined) return 'null'
    if (item instanceof PyFloat) return pythonFloat(item.value)
    if (typeof item === 'boolean') return item ? 'true' : 'false'
    if (typeof item === 'bigint') return item.toString()
    if (typeof item === 'number') return Number.isSafeInteger(item) && !Object.is(item, -0) ? String(item) : pythonFloat(item)
    if (typeof item === 'string') return pythonString(item)
    if (Array.isArray(item))
      return block(
        '[',
        ']',
        item.map((element) => write(element, depth + 1)),
        depth,
      )
    const members = item instanceof Map ? [...(item as Map<string, unknown>)] : Object.entries(item)
    const entries = members.filter(([, member]) => member !== undefined)
    if (sort) entries.sort(([a], [b]) => compareCodePoints(a, b))
    return block(
      '{',
      '}',
      entries.map(([key, member]) => `${pythonString(key)}: ${write(member, depth + 1)}`),
      depth,
    )
  }
  return write(value, 0)
}
