import { UnslothError } from '#shared/errors.ts'

/** A parsed config.json: what its keys mean is the model's business. */
export type HfConfig = Readonly<Record<string, unknown>>

const describe = (value: unknown): string => {
  if (Array.isArray(value)) return 'a list'
  if (typeof value === 'object') return 'an object'
  return typeof value === 'number' ? String(value) : JSON.stringify(value).slice(0, 60)
}

/**
 * Typed access to a config. A key that is absent or null counts as not given; a value of the wrong type, or a required key
 * that is not given, is a MODEL_INVALID error naming file and key. Pure: holds no file.
 */
export class ConfigReader {
  readonly values: HfConfig
  /** The file, for messages. */
  readonly where: string
  private readonly prefix: string

  constructor(values: HfConfig, where: string, prefix = '') {
    this.values = values
    this.where = where
    this.prefix = prefix
  }

  has(key: string): boolean {
    return this.raw(key) !== undefined
  }

  /** The value as it is; undefined when absent or null. */
  raw(key: string): unknown {
    return Object.hasOwn(this.values, key) ? this.values[key] ?? undefined : undefined
  }

  number(key: string): number
  number(key: string, fallback: undefined): number | undefined
  number(key: string, fallback: number): number
  number(key: string, ...fallback: unknown[]): number | undefined {
    return this.get(key, 'a finite number', (value): value is number => Number.isFinite(value), fallback)
  }

  /** A whole number from 0 to 2^53 − 1. */
  integer(key: string): number
  integer(key: string, fallback: undefined): number | undefined
  integer(key: string, fallback: number): number
  integer(key: string, ...fallback: unknown[]): number | undefined {
    return this.get(key, 'a whole number, 0 or more', (value): value is number => Number.isSafeInteger(value) && (value as number) >= 0, fallback)
  }

  boolean(key: string): boolean
  boolean(key: string, fallback: undefined): boolean | undefined
  boolean(key: string, fallback: boolean): boolean
  boolean(key: string, ...fallback: unknown[]): boolean | undefined {
    return this.get(key, 'true or false', (value): value is boolean => typeof value === 'boolean', fallback)
  }

  string(key: string): string
  string(key: string, fallback: undefined): string | undefined
  string(key: string, fallback: string): string
  string(key: string, ...fallback: unknown[]): string | undefined {
    return this.get(key, 'a text', (value): value is string => typeof value === 'string', fallback)
  }

  /** A list of texts; empty when not given. */
  strings(key: string): readonly string[] {
    return this.get(key, 'a list of texts', (value): value is string[] => Array.isArray(value) && value.every((item) => typeof item === 'string'), [[]]) ?? []
  }

  /** A list of finite numbers; undefined when not given. */
  numbers(key: string): readonly number[] | undefined {
    return this.get(key, 'a list of numbers', (value): value is number[] => Array.isArray(value) && value.every((item) => Number.isFinite(item)), [undefined])
  }

  /** A section; undefined when not given. */
  section(key: string): ConfigReader | undefined {
    const isObject = (value: unknown): value is HfConfig => typeof value === 'object' && value !== null && !Array.isArray(value)
    const values = this.get(key, 'an object', isObject, [undefined])
    return values === undefined ? undefined : new ConfigReader(values, this.where, `${this.prefix}${key}.`)
  }

  /** The error for a value that is there but cannot be used. */
  invalid(key: string, problem: string, hint = 'Correct it, or fetch the model again.'): UnslothError {
    return new UnslothError('MODEL_INVALID', `${this.where}: "${this.prefix}${key}" ${problem}.`, { hint })
  }

  /** `fallback` is empty when the key is required. */
  private get<T>(key: string, expected: string, accepts: (value: unknown) => value is T, fallback: readonly unknown[]): T | undefined {
    const value = this.raw(key)
    if (value === undefined) {
      if (fallback.length > 0) return fallback[0] as T | undefined
      throw this.invalid(key, `is missing: ${expected} is needed`)
    }
    if (!accepts(value)) throw this.invalid(key, `is ${describe(value)}, not ${expected}`)
    return value
  }
}
