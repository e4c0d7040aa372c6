import { UnslothError } from '#shared/errors.ts'
import { PyFloat } from './pythonJson.ts'
import { quote } from './printable.ts'

export interface JsonOptions {
  /** Named in every error. */
  readonly file: string
  /** `last`: as JSON.parse and Python do. Default: a repeated key is an error. */
  readonly duplicateKeys?: 'last'
  /** Also NaN, Infinity and -Infinity, which Python writes. */
  readonly python?: boolean
  /** Floats become PyFloat and integers beyond 2^53 become bigint, so that the file can be written again as it was. */
  readonly keepNumbers?: boolean
  readonly hint?: string
}

const maxDepth = 100
const number = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y
const word = /-?[A-Za-z]+/y
const escapes: Record<string, string> = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }

/**
 * JSON from untrusted files. Unlike JSON.parse it tells line and column in its own words, refuses repeated keys, and bounds
 * the nesting, so that no input exhausts the stack. `__proto__` becomes an ordinary own key.
 */
class JsonReader {
  private at = 0
  private readonly text: string
  private readonly options: JsonOptions

  constructor(text: string, options: JsonOptions) {
    this.text = text
    this.options = options
    if (text.charCodeAt(0) === 0xfeff) this.at = 1
  }

  document(): unknown {
    const value = this.value(0)
    this.space()
    if (this.at < this.text.length) this.fail(`unexpected ${this.seen()} after the end of the value`)
    return value
  }

  private fail(what: string, at = this.at): never {
    const before = this.text.slice(0, at)
    const lines = before.split('\n')
    const { file, hint } = this.options
    const place = `line ${lines.length}, column ${lines.at(-1)!.length + 1}`
    throw new UnslothError('FILE_FORMAT', `${file}: ${place}: not valid JSON: ${what}.`, {
      hint: hint ?? 'Correct the file at that place, or fetch it again if it was downloaded.',
    })
  }

  private seen(): string {
    if (this.at >= this.text.length) return 'end of the file'
    return quote(String.fromCodePoint(this.text.codePointAt(this.at)!))
  }

  private space(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.at)
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return
      this.at++
    }
  }

  private value(depth: number): unknown {
    this.space()
    const first = this.text[this.at]
    if (first === '{') return this.object(depth)
    if (first === '[') return this.array(depth)
    return first === '"' ? this.string() : this.scalar()
  }

  private enter(depth: number): void {
    if (depth >= maxDepth) this.fail(`nested more than ${maxDepth} levels deep`)
    this.at++
    this.space()
  }

  private object(depth: number): Record<string, unknown> {
    this.enter(depth)
    const object: Record<string, unknown> = {}
    if (this.text[this.at] === '}') {
      this.at++
      return object
    }
    for (;;) {
      this.space()
      const start = this.at
      if (this.text[this.at] !== '"') this.fail(`expected a key in double quotes, found ${this.seen()}`)
      const key = this.string()
      if (this.options.duplicateKeys !== 'last' && Object.hasOwn(object, key))
        this.fail(`the key ${quote(key)} appears twice`, start)
      this.space()
      if (this.text[this.at] !== ':') this.fail(`expected ":" after the key ${quote(key)}, found ${this.seen()}`)
      this.at++
      const value = this.value(depth + 1)
      if (key === '__proto__') Object.defineProperty(object, key, { value, enumerable: true, writable: true, configurable: true })
      else object[key] = value
      this.space()
      const next = this.text[this.at]
      if (next !== ',' && next !== '}') this.fail(`expected "," or "}", found ${this.seen()}`)
      this.at++
      if (next === '}') return object
    }
  }

  private array(depth: number): unknown[] {
    this.enter(depth)
    const array: unknown[] = []
    if (this.text[this.at] === ']') {
      this.at++
      return array
    }
    for (;;) {
      array.push(this.value(depth + 1))
      this.space()
      const next = this.text[this.at]
      if (next !== ',' && next !== ']') this.fail(`expected "," or "]", found ${this.seen()}`)
      this.at++
      if (next === ']') return array
    }
  }

  private string(): string {
    const start = this.at
    let value = ''
    let from = ++this.at
    for (;;) {
      const code = this.text.charCodeAt(this.at)
      if (Number.isNaN(code)) this.fail('this string has no end', start)
      if (code < 0x20) this.fail('a control character inside a string')
      if (code === 0x22) {
        return value + this.text.slice(from, this.at++)
      }
      if (code === 0x5c) {
        value += this.text.slice(from, this.at) + this.escape()
        from = this.at
      } else this.at++
    }
  }

  private escape(): string {
    const letter = this.text[this.at + 1] ?? ''
    if (letter === 'u') {
      const digits = this.text.slice(this.at + 2, this.at + 6)
      if (!/^[0-9a-fA-F]{4}$/.test(digits)) this.fail('"\\u" needs four hexadecimal digits')
      this.at += 6
      return String.fromCharCode(Number.parseInt(digits, 16))
    }
    const character = Object.hasOwn(escapes, letter) ? escapes[letter] : undefined
    if (character === undefined) this.fail(`unknown escape ${quote(`\\${letter}`)}`)
    this.at += 2
    return character
  }

  /** A plain integer of up to 15 digits, most of what a header holds; undefined leaves it to the full syntax. */
  private shortInteger(): number | undefined {
    let value = 0
    let end = this.at
    let code = this.text.charCodeAt(end)
    while (code >= 0x30 && code <= 0x39 && end - this.at < 16) {
      value = value * 10 + code - 0x30
      code = this.text.charCodeAt(++end)
    }
    const digits = end - this.at
    const leadingZero = digits > 1 && this.text.charCodeAt(this.at) === 0x30
    if (digits === 0 || digits > 15 || leadingZero || code === 0x2e || code === 0x45 || code === 0x65) return undefined
    this.at = end
    return value
  }

  private scalar(): unknown {
    const short = this.shortInteger()
    if (short !== undefined) return short
    number.lastIndex = this.at
    const found = number.exec(this.text)
    if (found !== null) {
      this.at = number.lastIndex
      return this.number(found)
    }
    word.lastIndex = this.at
    const name = word.exec(this.text)?.[0]
    const value = name === undefined ? undefined : this.literal(name)
    if (value === undefined) this.fail(`expected a value, found ${name === undefined ? this.seen() : quote(name)}`)
    this.at = word.lastIndex
    return value
  }

  private number(found: RegExpExecArray): unknown {
    const value = Number(found[0])
    if (this.options.keepNumbers !== true) return value
    if (found[1] !== undefined || found[2] !== undefined) return new PyFloat(value)
    return Number.isSafeInteger(value) ? value : BigInt(found[0])
  }

  private literal(name: string): unknown {
    if (name === 'true') return true
    if (name === 'false') return false
    if (name === 'null') return null
    if (this.options.python !== true) return undefined
    const value = name === 'NaN' ? NaN : name === 'Infinity' ? Infinity : name === '-Infinity' ? -Infinity : undefined
    return value === undefined || this.options.keepNumbers !== true ? value : new PyFloat(value)
  }
}

/** Parses JSON text; every failure is a FILE_FORMAT error with file, line and column. */
export function parseJson(text: string, options: JsonOptions): unknown {
  return new JsonReader(text, options).document()
}

/** UTF-8 bytes as text, or undefined when they are not UTF-8. */
export function decodeUtf8(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return undefined
  }
}

/** A JSON object: not null, not a list, not a number object of `keepNumbers`. */
export const isJsonObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof PyFloat)
