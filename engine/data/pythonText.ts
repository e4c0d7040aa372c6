import { Environment } from '@huggingface/jinja'

/** A value while a template runs, as @huggingface/jinja has it; `type` tells which kind. */
export interface RuntimeValue {
  type: string
  value: unknown
}
type Make<T> = new (value: T) => RuntimeValue

const probe = new Environment()
const makerOf = <T>(name: string, sample: unknown): Make<T> => probe.set(name, sample).constructor as Make<T>

/** The library's classes of values, which it does not export. */
export const values = {
  Text: makerOf<string>('text', ''),
  Integer: makerOf<number>('integer', 1),
  Float: makerOf<number>('float', 0.5),
  Truth: makerOf<boolean>('truth', true),
  List: makerOf<RuntimeValue[]>('list', []),
  Dict: makerOf<Map<string, RuntimeValue>>('dict', {}),
  None: makerOf<null>('none', null),
  Undefined: makerOf<undefined>('undefined', undefined),
}

export const isList = (value: RuntimeValue): value is RuntimeValue & { value: RuntimeValue[] } => value instanceof values.List
export const isDict = (value: RuntimeValue): value is RuntimeValue & { value: Map<string | number, RuntimeValue> } =>
  value instanceof values.Dict
export const isText = (value: RuntimeValue): value is RuntimeValue & { value: string } => value instanceof values.Text

/** Lists that a template wrote in round brackets. */
const tuples = new WeakSet<RuntimeValue>()

export function tuple(items: RuntimeValue[]): RuntimeValue {
  const made = new values.List(items)
  tuples.add(made)
  return made
}

const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' }
const hex = (code: number): string =>
  code < 0x100
    ? `\\x${code.toString(16).padStart(2, '0')}`
    : code < 0x1_0000
      ? `\\u${code.toString(16).padStart(4, '0')}`
      : `\\U${code.toString(16).padStart(8, '0')}`

/** Python's repr of a text: single quotes unless only those stand in it; what cannot be printed is escaped. */
function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'"
  const body = text.replace(/[\\\n\r\t']|[^\P{C}]|[^\P{Z} ]/gu, (character) =>
    character === "'" ? (quote === "'" ? "\\'" : "'") : (escapes[character] ?? hex(character.codePointAt(0)!)),
  )
  return quote + body + quote
}

/** Python's repr of a float: exponents from 1e16 and below 1e-4, with two digits at least. */
function floatText(value: number): string {
  if (Number.isNaN(value)) return 'nan'
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf'
  if (Object.is(value, -0)) return '-0.0'
  const size = Math.abs(value)
  if (size !== 0 && (size >= 1e16 || size < 1e-4)) return value.toExponential().replace(/e([+-])(\d)$/, 'e$10$2')
  return Number.isInteger(value) ? value.toFixed(1) : String(value)
}

/** What Python's repr gives for a value. */
export function pythonRepr(value: RuntimeValue): string {
  if (isText(value)) return quoted(value.value)
  if (isList(value)) {
    const items = value.value.map(pythonRepr)
    return tuples.has(value) ? `(${items.join(', ')}${items.length === 1 ? ',' : ''})` : `[${items.join(', ')}]`
  }
  if (isDict(value)) {
    const entries = [...value.value].map(([key, inner]) => `${typeof key === 'number' ? key : quoted(key)}: ${pythonRepr(inner)}`)
    return `{${entries.join(', ')}}`
  }
  switch (value.type) {
    case 'FloatValue':
      return floatText(value.value as number)
    case 'IntegerValue':
      return String(value.value)
    case 'BooleanValue':
      return value.value === true ? 'True' : 'False'
    case 'NullValue':
      return 'None'
    case 'UndefinedValue':
      return 'Undefined'
    default:
      return `<${value.type}>`
  }
}

/** What Python's str gives: text as it is, and nothing for what is undefined. */
export const pythonText = (value: RuntimeValue): string =>
  isText(value) ? value.value : value.type === 'UndefinedValue' ? '' : pythonRepr(value)

const numberOf = (value: RuntimeValue): number | undefined =>
  ['IntegerValue', 'FloatValue', 'BooleanValue'].includes(value.type) ? Number(value.value) : undefined

/** Python's `==`: by contents, numbers by their value, and never across kinds. */
export function pythonEqual(a: RuntimeValue, b: RuntimeValue): boolean {
  if (a === b) return true
  if (isText(a) || isText(b)) return isText(a) && isText(b) && a.value === b.value
  if (isList(a) && isList(b))
    return (
      a.value === b.value ||
      (tuples.has(a) === tuples.has(b) &&
        a.value.length === b.value.length &&
        a.value.every((item, index) => pythonEqual(item, b.value[index]!)))
    )
  if (isDict(a) && isDict(b)) {
    const other = b.value
    return (
      a.value === other ||
      (a.value.size === other.size && [...a.value].every(([key, item]) => other.has(key) && pythonEqual(item, other.get(key)!)))
    )
  }
  const [left, right] = [numberOf(a), numberOf(b)]
  if (left !== undefined || right !== undefined) return left === right
  return a.type === b.type && a.value === b.value
}

const markup = new WeakSet<RuntimeValue>()

/** Text that the filter `safe` has marked: what is added to it is escaped as HTML (markupsafe). */
export function safeText(text: string): RuntimeValue {
  const made = new values.Text(text)
  markup.add(made)
  return made
}

const entities: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&#34;', "'": '&#39;' }
export const isSafe = (value: RuntimeValue): boolean => markup.has(value)

/** Two texts of which at least one is marked as safe, joined. */
export function joinSafe(a: RuntimeValue, b: RuntimeValue): RuntimeValue {
  const part = (value: RuntimeValue): string =>
    isSafe(value) ? pythonText(value) : pythonText(value).replace(/[&<>"']/g, (character) => entities[character]!)
  return safeText(part(a) + part(b))
}
