import { Environment } from '@huggingface/jinja'
import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { namedTemplate, namedTemplates } from './namedTemplates.ts'
import { TemplateInterpreter, type TemplateLimits } from './templateInterpreter.ts'
import { parseTemplate, templateFunctions } from './templateProgram.ts'
import type { Tokenizer } from './tokenizer.ts'

/** One turn. `content` is text, or whatever the template takes: parts, null beside tool calls. */
export interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly [key: string]: unknown
}

export interface RenderOptions {
  /** Ends with what introduces an answer. */
  readonly addGenerationPrompt?: boolean
  readonly tools?: readonly unknown[]
  /** More variables of the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>
}

export interface ChatTemplateOptions {
  /** What it is called in messages: `the chat template of …`. */
  readonly name: string
  readonly tokens: Pick<Tokenizer, 'bosToken' | 'eosToken' | 'padToken' | 'unkToken'>
  /** What the template takes for now: a resumed run passes the time of its start, so that the data stay the same. */
  readonly now?: Date
  /** Default: ten seconds a conversation, and 2²⁸ characters. */
  readonly limits?: TemplateLimits
}

/** Thousands of times what the longest conversations take. */
const usualLimits: TemplateLimits = { milliseconds: 10_000, characters: 2 ** 28 }
/** Numbers that a template may count at once. */
const longestRange = 100_000

/** What a template itself refuses with `raise_exception`. */
class TemplateRefusal extends Error {}

const months = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
]
const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday']

/** Python's strftime in the C locale, for the directives that templates use. */
export function strftime(date: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, '0')
  const month = months[date.getMonth()]!
  const day = days[date.getDay()]!
  const values: Readonly<Record<string, string>> = {
    Y: String(date.getFullYear()),
    y: two(date.getFullYear() % 100),
    m: two(date.getMonth() + 1),
    d: two(date.getDate()),
    e: String(date.getDate()).padStart(2),
    b: month.slice(0, 3),
    B: month,
    a: day.slice(0, 3),
    A: day,
    H: two(date.getHours()),
    I: two(date.getHours() % 12 || 12),
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    p: date.getHours() < 12 ? 'AM' : 'PM',
    '%': '%',
    F: `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`,
    T: `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`,
  }
  return format.replace(/%(-?)([YymdebBaAHIMSpFT%])/g, (_, bare: string, key: string) => {
    const value = values[key]!
    return bare === '' ? value : value.replace(/^[0 ](?=.)/, '')
  })
}

const range = (from: number, to?: number, step = 1): number[] => {
  const [start, stop] = to === undefined ? [0, from] : [from, to]
  const length = Math.max(0, Math.ceil((stop - start) / step))
  if (!(length <= longestRange)) throw new Error(`range() of ${length} numbers`)
  return Array.from({ length }, (_, index) => start + index * step)
}

/** A Jinja chat template with the variables and functions that transformers' `apply_chat_template` gives it. */
export class ChatTemplate {
  readonly source: string
  readonly name: string
  private readonly program: ReturnType<typeof parseTemplate>
  private readonly globals: Readonly<Record<string, unknown>>
  private readonly limits: TemplateLimits

  constructor(source: string, { name, tokens, now = new Date(), limits = usualLimits }: ChatTemplateOptions) {
    this.source = source
    this.name = name
    this.limits = limits
    try {
      this.program = parseTemplate(source)
    } catch (error) {
      throw new UnslothError('TOKENIZER', `${name} is not valid: ${(error as Error).message}.`, {
        hint: 'Correct the Jinja template, or name another one with data.chat_template.',
        cause: error,
      })
    }
    const special = {
      bos_token: tokens.bosToken,
      eos_token: tokens.eosToken,
      pad_token: tokens.padToken,
      unk_token: tokens.unkToken,
    }
    const set = Object.fromEntries(Object.entries(special).filter(([, token]) => token !== undefined))
    this.globals = {
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      range,
      ...templateFunctions,
      ...set,
      raise_exception: (message: unknown) => {
        throw new TemplateRefusal(String(message))
      },
      strftime_now: (format: string) => strftime(now, format),
    }
  }

  /** The text of a conversation. What the template refuses is a DATA error with its reason. */
  render(messages: readonly ChatMessage[], { addGenerationPrompt = false, tools, variables = {} }: RenderOptions = {}): string {
    const environment = new Environment()
    const values = {
      ...this.globals,
      documents: null,
      ...variables,
      messages,
      tools: tools ?? null,
      add_generation_prompt: addGenerationPrompt,
    }
    for (const [key, value] of Object.entries(values)) environment.set(key, value)
    try {
      const { value } = new TemplateInterpreter(environment, this.limits).evaluate(this.program, environment)
      return typeof value === 'string' ? value : ''
    } catch (error) {
      throw this.failure(error, messages)
    }
  }

  private failure(error: unknown, messages: readonly ChatMessage[]): UnslothError {
    const roles = messages
      .map(({ role }) => role)
      .slice(0, 8)
      .join(', ')
    const reason = error instanceof Error ? error.message : String(error)
    const text = `${this.name} ${error instanceof TemplateRefusal ? 'refuses these messages' : 'failed'}: ${reason}`
    return new UnslothError('DATA', `${text}${/[.!?]$/.test(text) ? '' : '.'}`, {
      hint:
        `The roles are ${roles}${messages.length > 8 ? ', …' : ''}. ` +
        'Bring the messages into the form that this model expects, or name another template with data.chat_template.',
      cause: error,
    })
  }
}

export interface ChatTemplateChoice {
  /** A Jinja template, the name of one of the tokenizer's templates, or `chatml`. Default: the model's own. */
  readonly template?: string
  readonly tools?: boolean
  readonly now?: Date
}

/** Whether a text is a template, and not the name of one. */
export const isTemplateText = (text: string): boolean => /\{[{%]/.test(text)

/** The template to use with a tokenizer; a model that has none is an error that says what to do. */
export function chatTemplateFor(tokenizer: Tokenizer, { template, tools = false, now }: ChatTemplateChoice = {}): ChatTemplate {
  const make = (source: string, name: string): ChatTemplate =>
    new ChatTemplate(source, { name, tokens: tokenizer, ...(now && { now }) })
  const own = tokenizer.chatTemplates
  if (template !== undefined) {
    const named = own.get(template) ?? namedTemplate(template)
    if (named !== undefined) return make(named, `the chat template ${quote(template)}`)
    if (!isTemplateText(template)) {
      const known = [...own.keys(), ...Object.keys(namedTemplates)].map((name) => quote(name)).join(', ')
      throw new UnslothError('TOKENIZER', `${quote(template)}: neither a Jinja template nor the name of a known one.`, {
        hint: `Known are ${known}.`,
      })
    }
    return make(template, 'the template of data.chat_template')
  }
  const source = (tools ? own.get('tool_use') : undefined) ?? own.get('default') ?? own.values().next().value
  if (source === undefined)
    throw new UnslothError('TOKENIZER', `${tokenizer.folder}: this model has no chat template for conversations.`, {
      hint:
        'It is a base model. Set data.chat_template to chatml or to a Jinja file, use its instruction-tuned sibling, ' +
        'or give the data as prompt and completion.',
    })
  return make(source, `the chat template of ${tokenizer.folder}`)
}

/**
 * Ids of rendered text. Special tokens that the template wrote become their ids; a BOS that the tokenizer would put before any
 * text is put there unless the template already did: never two.
 */
export function encodeRendered(tokenizer: Tokenizer, text: string): Int32Array {
  return withBos(tokenizer, tokenizer.encode(text))
}

/** The ids with the tokenizer's BOS before them, unless they begin with it or the tokenizer adds none. */
export function withBos(tokenizer: Tokenizer, ids: Int32Array): Int32Array {
  const { prefixIds, bosId, addsBos } = tokenizer
  if (prefixIds.length === 0 || (addsBos && ids[0] === bosId)) return ids
  return Int32Array.from([...prefixIds, ...ids])
}

/** Whether a value can be a list of messages: objects with a text `role`. */
export const isMessages = (value: unknown): value is ChatMessage[] =>
  Array.isArray(value) && value.length > 0 && value.every((entry) => isJsonObject(entry) && typeof entry.role === 'string')
