import { UnslothError } from '#shared/errors.ts'

/** config.json as it stands in a model folder. */
export type HfConfig = Readonly<Record<string, unknown>>

/**
 * Typed access to a Hub config. `null` counts as absent, a wrong type is an error that names the key, and old and new spellings
 * are tried in order.
 */
export class Config {
  readonly values: HfConfig
  private readonly where: string

  constructor(values: HfConfig, where = 'config.json') {
    this.values = values
    this.where = where
  }

  private find(keys: readonly string[]): { key: string; value: unknown } | undefined {
    for (const key of keys) {
      const value = this.values[key]
      if (value !== undefined && value !== null) return { key, value }
    }
    return undefined
  }

  private wrong(key: string, expected: string): never {
    throw new UnslothError(
      'MODEL_INVALID',
      `${this.where}: "${key}" should be ${expected}, but is ${JSON.stringify(this.values[key])}.`,
    )
  }

  has(...keys: string[]): boolean {
    return this.find(keys) !== undefined
  }

  optionalNumber(...keys: string[]): number | undefined {
    const found = this.find(keys)
    if (found === undefined) return undefined
    if (typeof found.value !== 'number' || !Number.isFinite(found.value)) this.wrong(found.key, 'a number')
    return found.value
  }

  number(fallback: number, ...keys: string[]): number {
    return this.optionalNumber(...keys) ?? fallback
  }

  /** Like `number`, but an explicit `null` means 0 (a feature switched off) and only a missing key the fallback. */
  nullableNumber(fallback: number, key: string): number {
    return this.values[key] === null ? 0 : this.number(fallback, key)
  }

  /** A positive integer that must be there. */
  size(...keys: string[]): number {
    const value = this.optionalNumber(...keys)
    if (value === undefined) throw new UnslothError('MODEL_INVALID', `${this.where}: "${keys.join('" or "')}" is missing.`)
    if (!Number.isInteger(value) || value < 1 || value > 2 ** 31) this.wrong(this.find(keys)!.key, 'a positive integer')
    return value
  }

  boolean(fallback: boolean, ...keys: string[]): boolean {
    const found = this.find(keys)
    if (found === undefined) return fallback
    if (typeof found.value !== 'boolean') this.wrong(found.key, 'true or false')
    return found.value
  }

  string(...keys: string[]): string | undefined {
    const found = this.find(keys)
    if (found === undefined) return undefined
    if (typeof found.value !== 'string') this.wrong(found.key, 'a string')
    return found.value
  }

  numbers(key: string): number[] | undefined {
    const value = this.find([key])?.value
    if (value === undefined) return undefined
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'number')) this.wrong(key, 'a list of numbers')
    return value
  }

  strings(key: string): string[] | undefined {
    const value = this.find([key])?.value
    if (value === undefined) return undefined
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) this.wrong(key, 'a list of strings')
    return value
  }

  section(...keys: string[]): Config | undefined {
    const found = this.find(keys)
    if (found === undefined) return undefined
    if (typeof found.value !== 'object' || Array.isArray(found.value)) this.wrong(found.key, 'an object')
    return new Config(found.value as HfConfig, `${this.where}: ${found.key}`)
  }
}
