import { t } from './texts.ts'
import { rangeText, valueEntries, type FieldMeta, type RecipeField } from '#shared/recipe.ts'

/** A number as people write it in a recipe: 2e-4, 0.01, 2048. */
export function formatNumber(value: number): string {
  const size = Math.abs(value)
  return size > 0 && (size < 0.001 || size >= 1e7) ? value.toExponential().replace('e+', 'e') : String(value)
}

/** A value as it is written in YAML. */
export function yamlValue(value: unknown): string {
  if (value === null || value === undefined) return ''
  if (typeof value === 'number') return formatNumber(value)
  if (typeof value === 'string') return quoteIfNeeded(value)
  if (Array.isArray(value)) return `[${value.map((item) => yamlValue(item)).join(', ')}]`
  return JSON.stringify(value)
}

const plainScalar = /^[^\s\-?:,[\]{}#&*!|>'"%@`~][^#:\r\n,[\]{}]*$|^[-./~][\w./\\-]*$/
/** What YAML, or the schema, reads as something else than text. */
const otherType = new RegExp(
  '^(?:true|false|yes|no|on|off|null|none|~|[-+]?[\\d._]+(?:e[-+]?\\d+)?|0x[\\da-f]+|0o[0-7]+' +
    '|[-+]?\\.(?:inf|nan)|-+|\\.{3})$',
  'i',
)

/** A text as YAML reads it back unchanged: with quotes where it would otherwise mean something else. */
export function quoteIfNeeded(text: string): string {
  if (plainScalar.test(text) && !otherType.test(text) && text.trim() === text) return text
  return /[\n\r\t\\']/.test(text) ? JSON.stringify(text) : `'${text}'`
}

/** The default in words or code, as Markdown. */
export function defaultText({ default: value, defaultDoc }: FieldMeta): string {
  if (defaultDoc !== undefined) return t(defaultDoc)
  if (value === undefined) return t('required')
  if (value === null || (Array.isArray(value) && value.length === 0)) return t('empty')
  return `\`${yamlValue(value)}\``
}

export function typeText(meta: FieldMeta): string {
  const kind = meta.kind === 'integer' ? 'whole number' : meta.kind === 'boolean' ? 'true or false' : meta.kind
  const range = rangeText(meta)
  return range === '' ? kind : `${kind} ${range}`
}

const plain = (markdown: string): string => markdown.replaceAll('`', '')

/** Type and default in one line, for the list of completions. */
export function detailText(meta: FieldMeta): string {
  const fallback = meta.default === undefined ? 'required' : `default ${plain(defaultText(meta))}`
  return `${meta.kind === 'integer' ? 'whole number' : meta.kind} · ${fallback}`
}

/** Whether a run goes another way than the key asks for, in one word for lists. */
export const availabilityWord = (meta: FieldMeta): string =>
  meta.availability === undefined ? '' : meta.availability.severity === 'error' ? 'not available yet' : 'partly available'

/** All that is known of a key: what it does, its effect, values, range, default, availability, other names. */
export function fieldMarkdown({ path, meta }: RecipeField, title = true): string {
  const parts: string[] = []
  if (title) parts.push(`**${path}** — ${typeText(meta)}, ${t('default')}: ${defaultText(meta)}`)
  parts.push(t(meta.doc))
  if (meta.effect !== undefined) parts.push(`**${t('Effect')}:** ${t(meta.effect)}`)
  if (meta.values !== undefined) {
    parts.push(
      valueEntries(meta)
        .map(([name, text]) => `- \`${name}\`: ${t(text)}`)
        .join('\n'),
    )
  }
  const examples = meta.examples?.map((value) => `\`${yamlValue(value)}\``).join(', ')
  if (examples !== undefined) parts.push(`**${t('Examples')}:** ${examples}`)
  if (meta.availability !== undefined) parts.push(`**${t('Availability')}:** ${t(meta.availability.note)}.`)
  if (meta.aliases !== undefined) parts.push(t('Also written {0}.', meta.aliases.map((name) => `\`${name}\``).join(', ')))
  return parts.join('\n\n')
}

/** One line of documentation: the first sentence. */
export function summary(meta: FieldMeta): string {
  return /^.*?[.:](?=\s|$)/s.exec(meta.doc)?.[0] ?? meta.doc
}
