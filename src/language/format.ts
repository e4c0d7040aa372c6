import { isDeepStrictEqual } from 'node:util'
import type { TextEdit } from 'vscode-languageserver'
import { parseDocument } from '../../engine/recipe/recipeDocument.ts'
import { Outline, type Entry } from './outline.ts'
import { afterMark, SourceText } from './text.ts'

/** A line as it comes out. */
interface Placed {
  readonly text: string
  readonly blank: boolean
}

const indentOf = (line: string): number => /^[ \t]*/.exec(line)![0].length

/**
 * Lays a recipe out: keys two spaces below their section, lists four, one space behind a colon, no spaces at the end of lines,
 * at most one blank line. Comments and the way values are written stay. A text that does not parse, or that would mean
 * something else afterwards, is left alone.
 */
export function formatRecipeText(text: string): string {
  const mark = afterMark(text)
  const source = new SourceText(text.slice(mark).replace(/^([ \t]*\t[ \t]*)/gm, (indent) => indent.replaceAll('\t', '  ')))
  const before = parseDocument(source.text)
  if (before.problems.length > 0) return text
  const outline = new Outline(source)
  if (outline.entries.some(({ inFlow, parent }) => inFlow && parent === undefined)) return text
  const placed = layout(outline)
  const lines: string[] = []
  for (const { text: line, blank } of placed) {
    if (!blank || (lines.length > 0 && lines.at(-1) !== '')) lines.push(line)
  }
  while (lines.at(-1) === '') lines.pop()
  const result = lines.join(source.eol) + source.eol
  const after = parseDocument(result)
  return after.problems.length === 0 && isDeepStrictEqual(before.value, after.value) ? text.slice(0, mark) + result : text
}

/** Formatting as edits: one for the lines that differ. */
export function formatEdits(source: SourceText): TextEdit[] {
  const result = formatRecipeText(source.text)
  if (result === source.text) return []
  let start = 0
  while (start < result.length && result[start] === source.text[start]) start++
  let end = 0
  while (end < Math.min(result.length, source.text.length) - start && result.at(-1 - end) === source.text.at(-1 - end)) end++
  // Not between the two characters of a line break.
  if (source.text[start - 1] === '\r') start--
  if (source.text[source.text.length - end] === '\n' && end > 0) end--
  return [source.edit({ start, end: source.text.length - end }, result.slice(start, result.length - end))]
}

function layout(outline: Outline): Placed[] {
  const { source } = outline
  const byLine = new Map<number, Entry>()
  for (const entry of outline.entries) if (!entry.inFlow && !byLine.has(entry.line)) byLine.set(entry.line, entry)
  const placed: Placed[] = []
  let current: Entry | undefined
  for (let line = 0; line < source.lineCount; line++) {
    const text = source.line(line)
    const trimmed = text.trim()
    const entry = byLine.get(line)
    const inBlock = current?.style === 'block-text' && line > current.line && line <= current.lastLine
    if (trimmed === '' && !inBlock) {
      placed.push({ text: '', blank: true })
    } else if (entry !== undefined) {
      current = entry
      placed.push({ text: ' '.repeat(entry.parent === undefined ? 0 : 2) + keyLine(text, entry, source), blank: false })
    } else if (trimmed.startsWith('#') && !inBlock) {
      placed.push({ text: ' '.repeat(commentIndent(outline, byLine, line, text)) + trimmed, blank: false })
    } else {
      placed.push({ text: continued(text, current, outline, inBlock), blank: false })
    }
  }
  return placed
}

/** `key:   value   # comment` with single spaces; two before a comment. */
function keyLine(text: string, entry: Entry, source: SourceText): string {
  const key = source.text.slice(entry.keySpan.start, entry.keySpan.end)
  const start = source.lineStart(entry.line)
  const colon = source.text.indexOf(':', entry.keySpan.end) - start
  const rest = text.slice(colon + 1).trim()
  if (rest === '') return `${key}:`
  if (rest.startsWith('#')) return `${key}:  ${rest}`
  if (entry.lastLine > entry.line || entry.valueSpan.end > source.lineEnd(entry.line)) return `${key}: ${rest}`
  const value = text.slice(colon + 1, entry.valueSpan.end - start).trim()
  const comment = text.slice(entry.valueSpan.end - start).trim()
  return comment === '' ? `${key}: ${value}` : `${key}: ${value}  ${comment}`
}

function continued(text: string, owner: Entry | undefined, outline: Outline, inBlock: boolean): string {
  if (owner === undefined) return text.trimEnd()
  const base = owner.parent === undefined ? 0 : 2
  if (owner.style === 'block-list') {
    const first = indentOf(outline.source.line(outline.source.lineAt(owner.items[0]?.span.start ?? owner.valueSpan.start)))
    return ' '.repeat(Math.max(0, base + 2 + indentOf(text) - first)) + text.trim()
  }
  const moved = Math.max(inBlock ? 0 : base + 1, indentOf(text) + base - owner.indent)
  return ' '.repeat(text.trim() === '' ? 0 : moved) + (inBlock ? text.slice(indentOf(text)) : text.trim())
}

/** A comment stands as what follows it; at the left edge it stays there when a section or nothing follows. */
function commentIndent({ source }: Outline, byLine: ReadonlyMap<number, Entry>, line: number, text: string): number {
  for (let next = line + 1; next < source.lineCount; next++) {
    const entry = byLine.get(next)
    // The end of a section may have comments of its own before the next one begins.
    if (entry !== undefined) return entry.parent === undefined && indentOf(text) === 0 ? 0 : 2
    const trimmed = source.line(next).trim()
    if (trimmed !== '' && !trimmed.startsWith('#')) return trimmed.startsWith('- ') ? 4 : 2
  }
  return indentOf(text) > 0 ? 2 : 0
}
