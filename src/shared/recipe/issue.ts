import { fill } from '#shared/panelStrings.ts'

export type PathPart = string | number

/** One problem of a recipe, at a place of the document or on the command line. */
export interface RecipeIssue {
  readonly severity: 'error' | 'warning'
  readonly code:
    | 'syntax'
    | 'duplicate_key'
    | 'unknown_key'
    | 'wrong_section'
    | 'type'
    | 'range'
    | 'value'
    | 'missing'
    | 'conflict'
    | 'unavailable'
    | 'secret'
    | 'empty'
    | 'ineffective'
  /** Where, in the keys of the document as they are written there. */
  readonly path: readonly PathPart[]
  /** Whether the key or its value is at fault. */
  readonly at: 'key' | 'value'
  /** Without place; the key is named by its full path. */
  readonly message: string
  /** What the message was made of, for another language; absent where it is not ours. */
  readonly template?: string
  readonly values?: Said['values']
  /** What to write instead of the key or value, when that is known: for a quick fix. */
  readonly suggestion?: string
  /** Command-line flag that the value came from; the document is not at fault then. */
  readonly flag?: string
}

/** A text, and what it was made of: a template with {0}, {1}, … and their values, which may be texts of that kind. */
export interface Said {
  readonly message: string
  readonly template: string
  readonly values: readonly (string | number | Said)[]
}

const filled = (template: string, values: Said['values']): Said => ({
  message: fill(template, ...values.map((value) => (typeof value === 'object' ? value.message : value))),
  template,
  values,
})

/** Tag of a text for users; tools/l10n.mjs collects what has it. */
export const say = (parts: TemplateStringsArray, ...values: Said['values']): Said =>
  filled(
    parts.reduce((text, part, at) => `${text}{${at - 1}}${part}`),
    values,
  )

/** A text that stands among those to be translated already. */
export const asText = (text: string): Said => filled(text, [])

/** The same with another first value. */
export const withFirst = ({ template, values }: Pick<Said, 'template' | 'values'>, first: string): Said =>
  filled(template, [first, ...values.slice(1)])

/** A text in another language: `words` has the translations of templates. What is not there stays English. */
export function translated(
  { message, template, values = [] }: Partial<Said> & Pick<Said, 'message'>,
  words: Readonly<Record<string, string>>,
): string {
  if (template === undefined) return message
  return fill(
    words[template] ?? template,
    ...values.map((value) => (typeof value === 'object' ? translated(value, words) : value)),
  )
}
