import type { TextEdit } from 'vscode-languageserver'
import { recipeFields, sectionNames, type SectionName } from '#shared/recipe.ts'
import type { Entry, Outline } from '../outline.ts'
import type { Span } from '../text.ts'

/** Renames a key where it stands; quotes stay. */
export function renameKey({ source }: Outline, { keySpan }: Entry, name: string): TextEdit {
  const quote = source.text[keySpan.start]
  return source.edit(keySpan, quote === '"' || quote === "'" ? `${quote}${name}${quote}` : name)
}

/** Replaces a value, or gives one to a key that has none. */
export function setValue({ source }: Outline, entry: Entry, value: string): TextEdit {
  if (entry.style === 'block-list') {
    const colon = source.text.indexOf(':', entry.keySpan.end)
    return source.edit({ start: colon + 1, end: source.lineEnd(entry.lastLine) }, ` ${value}`)
  }
  const { start, end } = entry.valueSpan
  return source.edit({ start, end }, source.text[start - 1] === ':' ? ` ${value}` : value)
}

/** All that a key takes up: whole lines, or its part between brackets with one comma. */
export function entrySpan({ source, rootIndent }: Outline, entry: Entry): Span {
  if (entry.inFlow) {
    const end = Math.max(entry.valueSpan.end, entry.keySpan.end)
    const after = /^\s*,[ \t]*/.exec(source.text.slice(end))
    if (after !== null) return { start: entry.keySpan.start, end: end + after[0].length }
    const before = /,?\s*$/.exec(source.text.slice(0, entry.keySpan.start))!
    return { start: before.index, end }
  }
  const start = source.lineStart(entry.line)
  if (entry.indent <= rootIndent && entry.line === 0)
    return { start: source.lineStart(0) + entry.keySpan.start - source.lineStart(0), end: lineAfter(source, entry.lastLine) }
  return { start, end: lineAfter(source, entry.lastLine) }
}

const lineAfter = (source: Outline['source'], line: number): number =>
  line + 1 < source.lineCount ? source.lineStart(line + 1) : source.text.length

/** Takes a key with its value out. */
export function removeEntry(outline: Outline, entry: Entry): TextEdit {
  return outline.source.edit(entrySpan(outline, entry), '')
}

const keyOrder = new Map(recipeFields.map(({ path }, index) => [path, index]))

/** What is to be put into a section: `lines` are `key: value` with further lines indented below it. */
export interface Insertion {
  readonly key: string
  readonly lines: readonly string[]
}

/**
 * Puts keys into a section in the order of the schema; the section is made when it is missing. One edit for all, so that
 * several insertions at one place stay in order.
 */
export function insertKeys(outline: Outline, section: SectionName, keys: readonly Insertion[]): TextEdit {
  const { source, rootIndent, step } = outline
  const root = ' '.repeat(rootIndent)
  const owner = outline.section(section)
  const rank = (key: string): number => keyOrder.get(`${section}.${key}`) ?? Infinity
  const sorted = [...keys].sort((a, b) => rank(a.key) - rank(b.key))
  if (owner === undefined) {
    const body = sorted.flatMap(({ lines }) => lines).map((line) => `${root}${' '.repeat(step)}${line}`)
    return insertLines(outline, sectionEnd(outline, section), [`${root}${section}:`, ...body])
  }
  if (owner.valueSpan.end > owner.valueSpan.start && source.text[owner.valueSpan.start] === '{') {
    const text = sorted.map(({ lines }) => lines.join(' ')).join(', ')
    const at = owner.valueSpan.start + 1
    const filled = outline.children(section).length > 0
    return source.edit({ start: at, end: at }, filled ? ` ${text},` : ` ${text} `)
  }
  const children = outline.children(section).filter(({ inFlow }) => !inFlow)
  const indent = ' '.repeat(children[0]?.indent ?? rootIndent + step)
  const lines = sorted.flatMap((insertion) => insertion.lines).map((line) => indent + line)
  if (owner.field?.path === 'model.name') {
    // `model: NAME` becomes a section that has room for more.
    const name = source.text.slice(owner.valueSpan.start, owner.valueSpan.end)
    const colon = source.text.indexOf(':', owner.keySpan.end)
    return source.edit({ start: colon + 1, end: owner.valueSpan.end }, [``, `${indent}name: ${name}`, ...lines].join(source.eol))
  }
  const before = children.filter(({ field }) => rank(field?.key ?? '') <= rank(sorted[0]!.key)).at(-1)
  return insertLines(
    outline,
    (before ?? owner).lastLine === owner.lastLine ? (before?.lastLine ?? owner.line) : (before?.lastLine ?? owner.line),
    lines,
  )
}

/** The last line of what stands before a new section, by the usual order; −1 for the beginning. */
function sectionEnd(outline: Outline, section: SectionName): number {
  const index = sectionNames.indexOf(section)
  const before: readonly string[] = ['version', ...sectionNames.slice(0, index)]
  const earlier = outline.sections.filter(({ key }) => before.includes(key))
  return earlier.at(-1)?.lastLine ?? -1
}

function insertLines({ source }: Outline, after: number, lines: readonly string[]): TextEdit {
  const { eol } = source
  if (after < 0)
    return source.edit(
      { start: source.text.startsWith('\ufeff') ? 1 : 0, end: source.text.startsWith('\ufeff') ? 1 : 0 },
      lines.join(eol) + eol,
    )
  const end = source.lineEnd(after)
  return source.edit({ start: end, end }, eol + lines.join(eol))
}

/** A key with all its lines, as they stand, without their indentation. */
export function linesOf({ source }: Outline, entry: Entry): string[] {
  if (entry.inFlow) return [source.text.slice(entry.keySpan.start, Math.max(entry.valueSpan.end, entry.keySpan.end))]
  const lines: string[] = []
  for (let line = entry.line; line <= entry.lastLine; line++) {
    const text = source.line(line)
    const own = /^[ \t\ufeff]*/.exec(text)![0].length
    lines.push(
      line === entry.line
        ? text.slice(own)
        : text.trim() === ''
          ? ''
          : ' '.repeat(Math.max(2, own - entry.indent)) + text.slice(own),
    )
  }
  return lines.map((line) => line.trimEnd())
}
