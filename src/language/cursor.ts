import type { Position } from 'vscode-languageserver'
import { findField, isSection, type RecipeField, type SectionName } from '#shared/recipe.ts'
import { quotedEnd, unquote } from './flow.ts'
import type { Entry, Outline } from './outline.ts'
import { afterMark, type Span } from './text.ts'

/** A place where a key is written. */
export interface KeyCursor {
  readonly kind: 'key'
  /** Undefined for the names of sections. */
  readonly section: SectionName | undefined
  /** The word under the cursor, to be replaced. */
  readonly word: Span
  readonly hasColon: boolean
  readonly inFlow: boolean
  readonly indent: number
}

/** A place where a value is written. */
export interface ValueCursor {
  readonly kind: 'value'
  readonly field: RecipeField
  /** The scalar under the cursor without its quotes, to be replaced. */
  readonly word: Span
  readonly quote: '"' | "'" | undefined
  /** An item of a list, in block or in flow style. */
  readonly item: 'block' | 'flow' | undefined
  /** The next line under a key that has no value yet: a list item needs its dash. */
  readonly needsDash: boolean
  /** Right behind the colon: a space is missing. */
  readonly needsSpace: boolean
  readonly others: readonly string[]
}

export type Cursor = KeyCursor | ValueCursor | { readonly kind: 'version'; readonly word: Span } | { readonly kind: 'none' }

const none: Cursor = { kind: 'none' }
const wordChar = /[\w.-]/

/** Whether `column` of a line lies in a comment; quotes are heeded. */
function inComment(line: string, column: number): boolean {
  for (let at = 0; at < column; at++) {
    const char = line[at]!
    if ((char === '"' || char === "'") && (at === 0 || /[\s,[{:]/.test(line[at - 1]!))) at = quotedEnd(line, at) - 1
    else if (char === '#' && (at === 0 || /\s/.test(line[at - 1]!))) return true
  }
  return false
}

function wordAround(text: string, offset: number, from: number, to: number): Span {
  let start = offset
  let end = offset
  while (start > from && wordChar.test(text[start - 1]!)) start--
  while (end < to && wordChar.test(text[end]!)) end++
  return { start, end }
}

/** What is being written at a position, by indentation and brackets: it works on documents that do not parse. */
export function cursorAt(outline: Outline, position: Position): Cursor {
  const { source } = outline
  const offset = source.offset(position)
  const number = source.lineAt(offset)
  const start = source.lineStart(number) + (number === 0 ? afterMark(source.text) : 0)
  const line = source.text.slice(start, source.lineEnd(number))
  const column = offset - start
  if (column < 0 || inComment(line, column)) return none

  const flow = outline.entries.find(
    ({ valueSpan, style, inFlow }) =>
      !inFlow &&
      (style === 'flow' || style === 'section') &&
      '{['.includes(source.text[valueSpan.start] ?? ' ') &&
      isInside(outline, valueSpan, offset),
  )
  if (flow !== undefined)
    return flowCursor(outline, flow.valueSpan.start, offset, flow.section === undefined ? [flow.key] : [flow.section, flow.key])
  const opening = /^\s*\{/.exec(source.text.slice(afterMark(source.text)))
  if (opening !== null && offset >= opening[0].length)
    return flowCursor(outline, opening[0].length - 1 + afterMark(source.text), offset, [])
  if (outline.entries.some((entry) => entry.style === 'block-text' && number > entry.line && number <= entry.lastLine))
    return none

  const key = /^([ \t]*)("[^"]*"|'[^']*'|[^\s"'#[\]{},:-][^:#]*?)[ \t]*:/.exec(line)
  if (key !== null && column >= key[0].length && (line[key[0].length] === undefined || /\s/.test(line[key[0].length]!))) {
    return valueOfLine(outline, number, start, line, column, key)
  }
  const item = /^([ \t]*)-(?:[ \t]+|$)/.exec(line)
  if (item !== null && column >= item[0].length) return itemOfLine(outline, number, start, line, column, item)
  return keyOfLine(outline, number, start, line, column, key)
}

/**
 * Whether an offset is between the brackets of a value. An open bracket reaches as far as only white space follows it, further
 * in than the top-level keys.
 */
function isInside({ source, rootIndent }: Outline, span: Span, offset: number): boolean {
  if (offset <= span.start) return false
  if (offset < span.end) return true
  if (closes(source.text, span)) return false
  const line = source.lineAt(offset)
  return (
    source.text.slice(span.end, offset).trim() === '' &&
    (line === source.lineAt(span.end) || offset - source.lineStart(line) > rootIndent)
  )
}

const closes = (text: string, { start, end }: Span): boolean => text[end - 1] === (text[start] === '{' ? '}' : ']')

/** The scalar that stands around a column of a line, from `from` on. */
function scalarAt(line: string, start: number, from: number): { word: Span; quote: '"' | "'" | undefined } {
  const head = line[from]
  if (head === '"' || head === "'") {
    const end = Math.min(quotedEnd(line, from), line.length)
    const closed = end - from > 1 && line[end - 1] === head
    return { word: { start: start + from + 1, end: start + (closed ? end - 1 : end) }, quote: head }
  }
  let end = line.length
  for (let at = from; at < line.length; at++)
    if (line[at] === '#' && /\s/.test(line[at - 1] ?? ' ')) {
      end = at
      break
    }
  while (end > from && /\s/.test(line[end - 1]!)) end--
  return { word: { start: start + from, end: start + end }, quote: undefined }
}

const fieldOf = (outline: Outline, number: number, indent: number, name: string): RecipeField | 'version' | undefined => {
  if (indent <= outline.rootIndent) {
    return name === 'version' ? 'version' : name === 'model' ? findField('model', 'name') : undefined
  }
  const owner = outline.ownerOf(number)
  return owner !== undefined && isSection(owner.key) ? findField(owner.key, name) : undefined
}

function valueOfLine(
  outline: Outline,
  number: number,
  start: number,
  line: string,
  column: number,
  key: RegExpExecArray,
): Cursor {
  const colon = key[0].length
  const gap = /^[ \t]*/.exec(line.slice(colon))![0].length
  const field = fieldOf(outline, number, key[1]!.length, unquote(key[2]!))
  const from = Math.min(colon + gap, Math.max(column, colon))
  const { word, quote } = scalarAt(line, start, from)
  const inside =
    word.start <= start + column && start + column <= word.end ? word : { start: start + column, end: start + column }
  if (field === 'version') return { kind: 'version', word: inside }
  if (field === undefined) return none
  return {
    kind: 'value',
    field,
    word: inside,
    quote,
    item: undefined,
    needsDash: false,
    needsSpace: gap === 0 && column === colon,
    others: [],
  }
}

/** The field whose list the lines below it are. */
function listOwner(outline: Outline, number: number, indent: number): Entry | undefined {
  const above = outline.entries.findLast((entry) => entry.line < number && !entry.inFlow)
  if (above?.field === undefined || above.indent > indent) return undefined
  return above.style === 'block-list' || above.style === 'empty' || above.line === number - 1 ? above : undefined
}

function itemOfLine(
  outline: Outline,
  number: number,
  start: number,
  line: string,
  column: number,
  item: RegExpExecArray,
): Cursor {
  const owner = listOwner(outline, number, item[1]!.length)
  if (owner?.field === undefined) return none
  const { word, quote } = scalarAt(line, start, item[0].length)
  const here = word.start <= start + column && start + column <= word.end ? word : { start: start + column, end: start + column }
  const others = owner.items.filter(({ span }) => span.end < here.start || span.start > here.end).map(({ value }) => value)
  return {
    kind: 'value',
    field: owner.field,
    word: here,
    quote,
    item: 'block',
    needsDash: false,
    needsSpace: line[column - 1] === '-',
    others,
  }
}

function keyOfLine(
  outline: Outline,
  number: number,
  start: number,
  line: string,
  column: number,
  key: RegExpExecArray | null,
): Cursor {
  const { source } = outline
  const word = wordAround(source.text, start + column, start, start + line.length)
  if (line.slice(0, word.start - start).trim() !== '') return none
  const indent = word.start - start
  const before = outline.entries.findLast((entry) => entry.line < number && !entry.inFlow)
  const hasColon = key !== null
  // A line further in than a key without a value holds that value.
  if (
    !hasColon &&
    before?.field !== undefined &&
    indent > before.indent &&
    (before.style === 'empty' || before.style === 'block-list')
  ) {
    const isList = before.field.meta.kind === 'list'
    return {
      kind: 'value',
      field: before.field,
      word,
      quote: undefined,
      item: isList ? 'block' : undefined,
      needsDash: isList,
      needsSpace: false,
      others: before.items.map(({ value }) => value),
    }
  }
  if (indent <= outline.rootIndent || outline.entries.length === 0) {
    return indent > 0 && outline.entries.length > 0 && indent < outline.rootIndent
      ? none
      : { kind: 'key', section: undefined, word, hasColon, inFlow: false, indent }
  }
  const owner = outline.entries.findLast((entry) => entry.parent === undefined && entry.line < number)
  if (owner === undefined) return { kind: 'key', section: undefined, word, hasColon, inFlow: false, indent }
  if (!isSection(owner.key) || (owner.style !== 'section' && owner.style !== 'empty')) return none
  return { kind: 'key', section: owner.key, word, hasColon, inFlow: false, indent }
}

interface Frame {
  readonly open: '{' | '['
  key: string | undefined
  /** Where the current key or value began. */
  from: number
}

/** What is written between brackets: `path` names the keys outside of them. */
function flowCursor(outline: Outline, start: number, offset: number, path: readonly string[]): Cursor {
  const { text } = outline.source
  const stack: Frame[] = []
  let token = start
  for (let at = start; at < offset; at++) {
    const char = text[at]!
    const frame = stack.at(-1)
    if ((char === '"' || char === "'") && text.slice(token, at).trim() === '') {
      const end = quotedEnd(text, at)
      if (end > offset) break
      // A quote that is closed right before the cursor still belongs to the scalar.
      at = end - 1
    } else if (char === '#' && /\s/.test(text[at - 1] ?? '')) {
      const end = /[\r\n]/.exec(text.slice(at))
      if (end === null || at + end.index >= offset) return none
      at += end.index
    } else if (char === '{' || char === '[') {
      stack.push({ open: char, key: undefined, from: at + 1 })
      token = at + 1
    } else if (char === '}' || char === ']') {
      stack.pop()
      token = at + 1
    } else if (char === ',') {
      if (frame !== undefined) frame.key = undefined
      token = at + 1
    } else if (char === ':' && frame?.open === '{' && frame.key === undefined && /[\s,[\]{}"']/.test(text[at + 1] ?? ' ')) {
      frame.key = unquote(text.slice(token, at))
      token = at + 1
    }
  }
  const top = stack.at(-1)
  if (top === undefined) return none
  const keys = [...path, ...stack.map((frame) => frame.key).filter((key) => key !== undefined)]
  const gap = /^\s*/.exec(text.slice(token, offset))![0].length
  const quote = text[token + gap] === '"' || text[token + gap] === "'" ? (text[token + gap] as '"' | "'") : undefined
  if (top.open === '{' && top.key === undefined) {
    const [section] = keys
    if (keys.length > 1 || (section !== undefined && !isSection(section))) return none
    const word = wordAround(text, offset, token, text.length)
    const hasColon = /^["']?\s*:/.test(text.slice(word.end, word.end + 20))
    return { kind: 'key', section: section, word, hasColon, inFlow: true, indent: 0 }
  }
  const [section, name] = keys
  const field =
    section === 'model' && name === undefined
      ? findField('model', 'name')
      : section !== undefined && isSection(section) && name !== undefined
        ? findField(section, name)
        : undefined
  if (section === 'version' && name === undefined) return { kind: 'version', word: wordAround(text, offset, token, text.length) }
  if (field === undefined) return none
  // A value may go on over several lines; what is replaced stands on the line of the cursor.
  const line = outline.source.lineAt(offset)
  const from = Math.max(token + gap + (quote === undefined ? 0 : 1), outline.source.lineStart(line))
  const rest = /^[^,\]}\r\n"']*/.exec(text.slice(offset))![0]
  const end = Math.min(offset + (quote === undefined ? rest.trimEnd().length : rest.length), outline.source.lineEnd(line))
  const word = { start: Math.min(from, offset), end: Math.max(offset, end) }
  const owner = outline.at(offset)
  const others = (owner?.items ?? [])
    .filter(({ span }) => span.end < word.start || span.start > word.end)
    .map(({ value }) => value)
  return {
    kind: 'value',
    field,
    word,
    quote,
    item: top.open === '[' ? 'flow' : undefined,
    needsDash: false,
    needsSpace: text[token - 1] === ':' && gap === 0 && quote === undefined,
    others,
  }
}
