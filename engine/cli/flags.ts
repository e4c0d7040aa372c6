import { UnslothError } from '#shared/errors.ts'
import { closest } from '#shared/recipe.ts'

/** What a flag takes. `list` takes one or more words up to the next flag. */
export type FlagType = 'boolean' | 'text' | 'integer' | 'number' | 'list'

export interface Flag {
  readonly type: FlagType
  readonly summary: string
  /** Name of the value in help. */
  readonly value?: string
  readonly default?: boolean | string | number
  readonly choices?: readonly string[]
  /** Values beside the choices, one of which shows their form. */
  readonly pattern?: RegExp
  readonly min?: number
  readonly max?: number
  readonly short?: string
  readonly aliases?: readonly string[]
  /** A list may also stand as one text with commas. */
  readonly commas?: boolean
}

export type FlagTable = Readonly<Record<string, Flag>>

type ValueOf<Type extends FlagType> = Type extends 'boolean'
  ? boolean
  : Type extends 'text'
    ? string
    : Type extends 'list'
      ? readonly string[]
      : number

/** Values of a table of flags: always there with a default, else undefined when not given; booleans are false. */
export type FlagValues<Table extends FlagTable> = {
  readonly [Name in keyof Table]: Table[Name] extends { default: unknown } | { type: 'boolean' }
    ? ValueOf<Table[Name]['type']>
    : ValueOf<Table[Name]['type']> | undefined
}

/** Flags are the same with dashes and underscores. */
export const flagKey = (name: string): string => name.replaceAll('-', '_')
/** How a flag is written in help. */
export const dashed = (name: string): string => `--${name.replaceAll('_', '-')}`

export function usage(message: string, hint?: string): UnslothError {
  return new UnslothError('USAGE', message, hint === undefined ? {} : { hint })
}

/** A word that starts a flag; negative numbers and a lone dash are values. */
export const isFlag = (word: string): boolean => /^-[^\d.]/.test(word)

const switchWords = new Map([
  ['true', true],
  ['yes', true],
  ['on', true],
  ['1', true],
  ['false', false],
  ['no', false],
  ['off', false],
  ['0', false],
])

/** Position in the words of a command line. */
export class Words {
  private readonly words: readonly string[]
  private index = 0

  constructor(words: readonly string[]) {
    this.words = words
  }

  next(): string | undefined {
    return this.words[this.index++]
  }

  peek(): string | undefined {
    return this.words[this.index]
  }

  rest(): readonly string[] {
    const rest = this.words.slice(this.index)
    this.index = this.words.length
    return rest
  }

  /** The value of a flag: after `=`, or the next word. */
  value(flag: string, inline: string | undefined, what: string): string {
    if (inline !== undefined) return inline
    const word = this.peek()
    if (word === undefined || isFlag(word)) throw usage(`${flag} needs a value: ${flag} ${what}`)
    this.index++
    return word
  }

  /** One or more values, up to the next flag or a word that `stops`. */
  values(flag: string, inline: string | undefined, what: string, stops: (word: string) => boolean = () => false): string[] {
    const values = [this.value(flag, inline, what)]
    if (inline !== undefined) return values
    for (let word = this.peek(); word !== undefined && !isFlag(word) && !stops(word); word = this.peek()) {
      values.push(word)
      this.index++
    }
    return values
  }

  /** A switch: alone it is on; `=false`, or the word true or false after it, say otherwise. */
  switch(flag: string, inline: string | undefined): boolean {
    const word = inline ?? (/^(?:true|false)$/i.test(this.peek() ?? '') ? this.next() : undefined)
    if (word === undefined) return true
    const value = switchWords.get(word.toLowerCase())
    if (value === undefined) throw usage(`${flag} is true or false, not ${JSON.stringify(word)}`)
    return value
  }
}

/** Splits `--name=value`. Errors must name the flag only: the value may be a secret. */
export function splitFlag(word: string): { flag: string; name: string; inline: string | undefined } {
  const equals = word.indexOf('=')
  const flag = equals < 0 ? word : word.slice(0, equals)
  return { flag, name: flag.replace(/^--?/, ''), inline: equals < 0 ? undefined : word.slice(equals + 1) }
}

export function unknownFlag(flag: string, command: string, known: Iterable<string>): UnslothError {
  const near = closest(flag.replace(/^--?(?:no-)?/, ''), known)
  return usage(
    `${flag} is not a flag of ${command}${near === undefined ? '' : `; did you mean --${near}?`}`,
    `unsloth ${command} --help lists them`,
  )
}

function numberOf(flag: string, text: string, { type, min = -Infinity, max = Infinity }: Flag): number {
  const value = text.trim() === '' ? NaN : Number(text)
  const kind = type === 'integer' ? 'a whole number' : 'a number'
  if (!Number.isFinite(value) || (type === 'integer' && !Number.isInteger(value))) {
    throw usage(`${flag} is ${kind}, not ${JSON.stringify(text)}`)
  }
  if (value < min || value > max) {
    const range = max === Infinity ? `at least ${min}` : min === -Infinity ? `at most ${max}` : `from ${min} to ${max}`
    throw usage(`${flag} is ${kind} ${range}, not ${text}`)
  }
  return value
}

/** Reads the value of one flag of a table. */
export function readFlag(
  flag: string,
  spec: Flag,
  inline: string | undefined,
  words: Words,
): boolean | string | number | string[] {
  const what = spec.value ?? spec.type.toUpperCase()
  switch (spec.type) {
    case 'boolean':
      return words.switch(flag, inline)
    case 'list':
      return words
        .values(flag, inline, what)
        .flatMap((item) => (spec.commas === true ? item.split(',').filter((part) => part !== '') : [item]))
    case 'integer':
    case 'number':
      return numberOf(flag, words.value(flag, inline, what), spec)
    case 'text': {
      const text = words.value(flag, inline, what)
      if (spec.choices !== undefined && !spec.choices.includes(text) && spec.pattern?.test(text) !== true) {
        const near = closest(text, spec.choices)
        throw usage(
          `${flag} is one of ${spec.choices.join(', ')}, not ${JSON.stringify(text)}` +
            (near === undefined ? '' : `; did you mean ${near}?`),
        )
      }
      return text
    }
  }
}
