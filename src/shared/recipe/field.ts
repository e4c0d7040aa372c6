import * as z from 'zod'

/**
 * Constructors of the recipe's fields. Each makes a zod type that also reads what the Python tools read (numbers in
 * quotes, YAML 1.1's yes/no, comma lists) and registers what completion, hover, docs and flags say about the key.
 */

/** A setting that is understood but not (fully) available yet. */
export interface Availability {
  /** `warning`: the run goes ahead in the way the note says. `error`: the run would not be what was asked for. */
  readonly severity: 'warning' | 'error'
  /** What happens instead, and what to do. */
  readonly note: string
  /** Whether this (normalised) value asks for what is missing. */
  readonly applies: (value: unknown) => boolean
}

export type FieldKind = 'boolean' | 'integer' | 'number' | 'text' | 'choice' | 'list' | 'mapping'

/** What a path-like text names: used for live completion and to resolve relative paths. */
export type PathRole = 'model' | 'dataset' | 'file' | 'folder' | 'checkpoint'

interface FieldSpec {
  /** Markdown; the first sentence is the summary. */
  readonly doc: string
  /** Effect on memory, speed and quality. */
  readonly effect?: string
  /** Other spellings of the key in the Python tools. */
  readonly aliases?: readonly string[]
  /** The command-line flag, when the bare key would be ambiguous. `null`: only the dotted form. */
  readonly flag?: string | null
  readonly availability?: Availability
  readonly path?: PathRole
  /** Values worth offering first. */
  readonly examples?: readonly unknown[]
  /** Says what the default is when it depends on other keys. */
  readonly defaultDoc?: string
}

export interface FieldMeta extends FieldSpec {
  readonly kind: FieldKind
  readonly default: unknown
  readonly nullable: boolean
  /** Closed set of values with one line on each. */
  readonly values?: Readonly<Record<string, string>>
  /** Values beside the closed set: how they are written, one line on them, and which they are. */
  readonly series?: ValueSeries
  /** Other spellings of a value, in lower case. */
  readonly synonyms?: Readonly<Record<string, unknown>>
  readonly min?: number
  readonly max?: number
  readonly above?: number
  readonly below?: number
  /** JSON Schema of what may be written, when it is wider than what the field becomes. */
  readonly input?: Readonly<Record<string, unknown>>
}

export interface ValueSeries {
  /** As `cuda:N`. */
  readonly name: string
  readonly doc: string
  /** A regular expression. */
  readonly pattern: string
}

/** Every value of a closed set with one line on each, and the form of those that the set leaves open. */
export const valueEntries = ({ values = {}, series }: Pick<FieldMeta, 'values' | 'series'>): [name: string, doc: string][] => [
  ...Object.entries(values),
  ...(series === undefined ? [] : [[series.name, series.doc] as [string, string]]),
]

export const fieldRegistry = z.registry<FieldMeta>()

interface Range {
  readonly min?: number
  readonly max?: number
  /** Exclusive bounds. */
  readonly above?: number
  readonly below?: number
}

const numeral = /^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$/
/** YAML 1.1, which the Python tools use, reads these as booleans. */
const booleans = new Map<unknown, boolean>([
  ['true', true],
  ['yes', true],
  ['on', true],
  ['false', false],
  ['no', false],
  ['off', false],
])

/** A number written as text becomes a number; everything else stays for zod to judge. */
function readNumber(value: unknown): unknown {
  if (typeof value !== 'string') return value
  const text = value.trim()
  return numeral.test(text) ? Number(text.replaceAll('_', '')) : value
}

function readBoolean(value: unknown): unknown {
  if (typeof value !== 'string') return value
  return booleans.get(value.trim().toLowerCase()) ?? value
}

function readList(value: unknown): unknown {
  if (typeof value === 'string')
    return value
      .split(',')
      .map((part) => part.trim())
      .filter((part) => part !== '')
  if (typeof value === 'number') return [value]
  return value
}

function numberType(range: Range, integer: boolean): z.ZodNumber {
  let type = integer ? z.number().int() : z.number()
  if (range.min !== undefined) type = type.gte(range.min)
  if (range.max !== undefined) type = type.lte(range.max)
  if (range.above !== undefined) type = type.gt(range.above)
  if (range.below !== undefined) type = type.lt(range.below)
  return type
}

type NumberSpec = FieldSpec & Range & { readonly default: number }
type OptionalNumberSpec = FieldSpec & Range

function numberField(kind: 'integer' | 'number', spec: NumberSpec) {
  return z
    .preprocess(readNumber, numberType(spec, kind === 'integer'))
    .default(spec.default)
    .register(fieldRegistry, { ...spec, kind, nullable: false })
}

function optionalNumberField(kind: 'integer' | 'number', spec: OptionalNumberSpec) {
  return z
    .preprocess(readNumber, numberType(spec, kind === 'integer').nullable())
    .default(null)
    .register(fieldRegistry, { ...spec, kind, nullable: true, default: null })
}

/** A whole number with a default. */
export const integer = (spec: NumberSpec) => numberField('integer', spec)
/** A real number with a default. */
export const number = (spec: NumberSpec) => numberField('number', spec)
/** A whole number that may be left open. */
export const optionalInteger = (spec: OptionalNumberSpec) => optionalNumberField('integer', spec)
/** A real number that may be left open. */
export const optionalNumber = (spec: OptionalNumberSpec) => optionalNumberField('number', spec)

export function boolean(spec: FieldSpec & { readonly default: boolean }) {
  return z
    .preprocess(readBoolean, z.boolean())
    .default(spec.default)
    .register(fieldRegistry, { ...spec, kind: 'boolean', nullable: false })
}

interface TextRules {
  readonly maxLength?: number
  readonly pattern?: RegExp
  /** Keep white space at both ends. */
  readonly verbatim?: boolean
  /** Completes "must be …" when the pattern does not match. */
  readonly expected?: string
}

function textType({ maxLength = 4096, pattern, expected, verbatim = false }: TextRules): z.ZodString {
  const type = (verbatim ? z.string() : z.string().trim()).min(1).max(maxLength)
  return pattern === undefined ? type : type.regex(pattern, expected ?? 'text of the right form')
}

const noneWords = new Set(['none', 'null', ''])
const readOptionalText = (value: unknown): unknown =>
  typeof value === 'string' && noneWords.has(value.trim().toLowerCase()) ? null : value

/** Text that must be given. */
export function requiredText(spec: FieldSpec & TextRules) {
  return textType(spec).register(fieldRegistry, { ...spec, kind: 'text', nullable: false, default: undefined })
}

export function text(spec: FieldSpec & TextRules & { readonly default: string }) {
  return textType(spec)
    .default(spec.default)
    .register(fieldRegistry, { ...spec, kind: 'text', nullable: false })
}

export function optionalText(spec: FieldSpec & TextRules) {
  return z
    .preprocess(readOptionalText, textType(spec).nullable())
    .default(null)
    .register(fieldRegistry, { ...spec, kind: 'text', nullable: true, default: null })
}

interface ChoiceSpec<Value extends string> extends FieldSpec {
  readonly values: Readonly<Record<Value, string>>
  readonly default: NoInfer<Value>
  /** Other spellings, in lower case; booleans are looked up as 'true' and 'false'. */
  readonly synonyms?: Readonly<Record<string, NoInfer<Value>>>
}

/** One of a closed set of names; case does not matter. */
export function choice<Value extends string>(spec: ChoiceSpec<Value>) {
  const names = Object.keys(spec.values) as [Value, ...Value[]]
  const known = new Map<string, string>([
    ...names.map((name) => [name, name] as const),
    ...Object.entries<string>(spec.synonyms ?? {}),
  ])
  const read = (value: unknown): unknown => {
    const word = typeof value === 'string' ? value.trim().toLowerCase() : typeof value === 'boolean' ? String(value) : undefined
    return word === undefined ? value : (known.get(word) ?? value)
  }
  const extra = Object.keys(spec.synonyms ?? {})
  const input =
    extra.length === 0
      ? {}
      : { input: { enum: [...names, ...extra.map((word) => (word === 'true' ? true : word === 'false' ? false : word))] } }
  return z
    .preprocess(read, z.enum(names))
    .default(spec.default)
    .register(fieldRegistry, { ...spec, ...input, kind: 'choice', nullable: false })
}

const listInput = (item: Record<string, unknown>): Record<string, unknown> => ({
  anyOf: [{ type: 'array', items: item }, { type: 'string' }, { type: 'null' }],
})

interface ListSpec extends FieldSpec, TextRules {
  readonly default: readonly string[]
}

/** A list of texts, also written as one comma-separated text. */
export function textList(spec: ListSpec) {
  return z
    .preprocess(readList, z.array(textType(spec)).max(4096))
    .default([...spec.default])
    .register(fieldRegistry, { ...spec, kind: 'list', nullable: false, input: listInput({ type: 'string' }) })
}

/** A list of paths: one text is one path, since a comma may be part of a name. */
export function pathList(spec: FieldSpec & { readonly default: readonly string[] }) {
  const read = (value: unknown): unknown => (typeof value === 'string' ? (value.trim() === '' ? [] : [value.trim()]) : value)
  return z
    .preprocess(read, z.array(z.string().trim().min(1).max(4096)).max(4096))
    .default([...spec.default])
    .register(fieldRegistry, { ...spec, kind: 'list', nullable: false, input: listInput({ type: 'string' }) })
}

/** The same with names that follow a pattern, as those of numbered things. */
export function openChoice<Value extends string, Other extends string>(
  spec: ChoiceSpec<Value> & { readonly series: ValueSeries },
) {
  const names = Object.keys(spec.values) as [Value, ...Value[]]
  const known = new Map(Object.entries<string>(spec.synonyms ?? {}))
  const read = (value: unknown): unknown =>
    typeof value === 'string' ? (known.get(value.trim().toLowerCase()) ?? value.trim().toLowerCase()) : value
  const oneOf = `one of ${valueEntries(spec)
    .map(([name]) => name)
    .join(', ')}`
  const type = z.union([z.enum(names), z.string().regex(new RegExp(spec.series.pattern), oneOf)]) as unknown as z.ZodType<
    Value | Other
  >
  return z
    .preprocess(read, type)
    .default(spec.default)
    .register(fieldRegistry, {
      ...spec,
      kind: 'choice',
      nullable: false,
      input: {
        anyOf: [{ enum: [...names, ...Object.keys(spec.synonyms ?? {})] }, { type: 'string', pattern: spec.series.pattern }],
      },
    })
}

interface ChoiceListSpec<Value extends string> extends FieldSpec {
  readonly values: Readonly<Record<Value, string>>
  readonly default: readonly NoInfer<Value>[]
  readonly synonyms?: Readonly<Record<string, readonly NoInfer<Value>[]>>
}

/** A list of names of a closed set, without repeats; one name or a comma list may stand alone. */
export function choiceList<Value extends string>(spec: ChoiceListSpec<Value>) {
  const names = Object.keys(spec.values) as [Value, ...Value[]]
  const read = (value: unknown): unknown => {
    const list = readList(value)
    if (!Array.isArray(list)) return value
    const words = list.flatMap((item: unknown): readonly unknown[] => {
      if (typeof item !== 'string') return [item]
      const word = item.trim().toLowerCase()
      return (spec.synonyms as Readonly<Record<string, readonly unknown[]>> | undefined)?.[word] ?? [word]
    })
    return [...new Set<unknown>(words)]
  }
  const words = [...names, ...Object.keys(spec.synonyms ?? {})]
  return z
    .preprocess(read, z.array(z.enum(names)))
    .default([...spec.default])
    .register(fieldRegistry, {
      ...spec,
      kind: 'list',
      nullable: false,
      input: { anyOf: [{ enum: words }, { type: 'array', items: { enum: words } }, { type: 'string' }, { type: 'null' }] },
    })
}

/** `a: b` pairs, also written `a=b,c=d` or as a list of `a=b`. */
function readMapping(value: unknown): unknown {
  if (value === null || value === '') return {}
  const parts = typeof value === 'string' ? value.split(',') : value
  if (!Array.isArray(parts)) return value
  const pairs = parts.map((part: unknown) => (typeof part === 'string' ? /^([^=:]+)[=:](.+)$/s.exec(part.trim()) : null))
  if (pairs.includes(null)) return value
  return Object.fromEntries(pairs.map((pair) => [pair![1]!.trim(), pair![2]!.trim()]))
}

/** What an editor lets pass for a mapping: it, a text that readMapping reads, or nothing. */
const mappingOr = (properties: Readonly<Record<string, unknown>>) => ({
  anyOf: [{ type: 'object', ...properties }, { type: 'string' }, { type: 'null' }],
})

/** A text for some of a closed set of names. */
export function mapping<Name extends string>(spec: FieldSpec & { readonly names: readonly [Name, ...Name[]] }) {
  const { names, ...rest } = spec
  const type = z.partialRecord(z.enum(names), z.string().trim().min(1).max(256))
  return z
    .preprocess(readMapping, type)
    .default({})
    .register(fieldRegistry, {
      ...rest,
      kind: 'mapping',
      nullable: false,
      default: {},
      input: mappingOr({
        additionalProperties: false,
        properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])),
      }),
    })
}

/** A number for each of some names, which are regular expressions for the ends of layers' names. */
export function patterns(spec: FieldSpec & { readonly min: number; readonly max: number; readonly whole: boolean }) {
  const { whole, ...rest } = spec
  const isExpression = (text: string): boolean => {
    try {
      new RegExp(text)
      return text.trim() !== ''
    } catch {
      return false
    }
  }
  const plain = z.number().gte(spec.min).lte(spec.max)
  const type = z.record(
    z.string().max(256).refine(isExpression, "the end of a layer's name, or a regular expression for it"),
    z.preprocess(readNumber, whole ? plain.int() : plain),
  )
  return z
    .preprocess(readMapping, type)
    .default({})
    .register(fieldRegistry, {
      ...rest,
      kind: 'mapping',
      nullable: false,
      default: {},
      input: mappingOr({ additionalProperties: { type: whole ? 'integer' : 'number', minimum: spec.min, maximum: spec.max } }),
    })
}

/** Registers a field of any other shape. */
export function special<Type extends z.ZodType>(type: Type, meta: FieldMeta): Type {
  fieldRegistry.add(type, meta)
  return type
}

export { readBoolean, readList, readNumber }
