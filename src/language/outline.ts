import { findField, isSection, type RecipeField, type SectionName } from '#shared/recipe.ts'
import { quotedEnd, scanFlow, unquote, type FlowPair } from './flow.ts'
import type { SourceText } from './text.ts'
import { afterMark, type Span } from './text.ts'

/** One key of the text with its value, read leniently: it is there while the document is half typed. */
export interface Entry {
  /** The section it stands in; undefined at the top. */
  readonly section: SectionName | undefined
  /** The top-level key it stands under, known or not; undefined at the top. */
  readonly parent: string | undefined
  /** As written. */
  readonly key: string
  /** What the key means, by its own name or an alias; `model: NAME` means `model.name`. */
  readonly field: RecipeField | undefined
  readonly keySpan: Span
  /** Without comment and outer white space; empty behind the colon when there is no value on the line. */
  readonly valueSpan: Span
  /** A scalar without quotes, or the text of a flow value; empty for a block list or a section. */
  readonly value: string
  readonly items: readonly Item[]
  readonly style: 'plain' | 'flow' | 'block-list' | 'block-text' | 'section' | 'empty'
  /** Column of the key. */
  readonly indent: number
  /** Line of the key and the last line that belongs to it. */
  readonly line: number
  lastLine: number
  /** Stands between brackets on a line that may hold others. */
  readonly inFlow: boolean
}

export interface Item {
  readonly value: string
  readonly span: Span
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] }
type Draft = Mutable<Omit<Entry, 'items'>> & { items: Item[] }

/** Indentation, key and colon of a line; a key may be in quotes and may contain spaces. */
const keyPattern = new RegExp(
  "^([ \\t]*)(\"(?:[^\"\\\\]|\\\\.)*\"|'(?:[^']|'')*'|[^\\s\"'#\\-[\\]{},&*!|>%@`?:][^:#]*?" +
    '|-(?=[^\\s:])[^:#]*?|<<)[ \\t]*:(?=[ \\t]|$)',
)
const itemPattern = /^([ \t]*)-(?:[ \t]+|$)/

/** Where the value of a line ends: before a comment and white space at the end. */
export function scalarEnd(line: string, from: number): number {
  let at = from
  if (line[at] === '"' || line[at] === "'") at = Math.min(quotedEnd(line, at), line.length)
  let end = line.length
  for (; at < line.length; at++) {
    if (line[at] === '#' && (at === 0 || /\s/.test(line[at - 1]!))) {
      end = at
      break
    }
  }
  while (end > from && /\s/.test(line[end - 1]!)) end--
  return end
}

/** The keys of a recipe as they stand in the text, whatever state it is in. */
export class Outline {
  readonly source: SourceText
  readonly entries: readonly Entry[]
  /** Column of the top-level keys. */
  readonly rootIndent: number
  /** Spaces between a section and its keys. */
  readonly step: number

  constructor(source: SourceText) {
    this.source = source
    const scanner = new Scanner(source)
    this.entries = scanner.entries
    this.rootIndent = Math.max(0, scanner.rootIndent)
    const child = this.entries.find(({ parent, inFlow }) => parent !== undefined && !inFlow)
    this.step = Math.max(1, Math.min(8, (child?.indent ?? this.rootIndent + 2) - this.rootIndent))
  }

  /** Top-level entries. */
  get sections(): readonly Entry[] {
    return this.entries.filter(({ parent }) => parent === undefined)
  }

  section(name: string): Entry | undefined {
    return this.entries.find(({ parent, key }) => parent === undefined && key === name)
  }

  children(name: string): readonly Entry[] {
    return this.entries.filter(({ parent }) => parent === name)
  }

  /** The entry of `section.key`, under whatever name it is written. */
  find(path: string): Entry | undefined {
    return this.entries.find(({ field, style }) => field?.path === path && style !== 'section')
  }

  /** Text of a scalar; undefined when absent or empty. */
  value(path: string): string | undefined {
    const entry = this.find(path)
    return entry === undefined || entry.value === '' ? undefined : entry.value
  }

  /** The texts of a list, also when it is written as one text. */
  list(path: string): string[] {
    const entry = this.find(path)
    if (entry === undefined) return []
    if (entry.style === 'block-list' || entry.style === 'flow')
      return entry.items.map(({ value }) => value).filter((value) => value !== '')
    return entry.value === '' ? [] : [entry.value]
  }

  /** The entry whose key or value is at an offset. */
  at(offset: number): Entry | undefined {
    return this.entries.findLast(
      ({ keySpan, valueSpan, items }) =>
        inside(keySpan, offset) || inside(valueSpan, offset) || items.some(({ span }) => inside(span, offset)),
    )
  }

  /** The entry written at a place of the document, as issues name it. */
  atPath(path: readonly (string | number)[]): Entry | undefined {
    const [first, second] = path
    if (typeof first !== 'string') return undefined
    const nested =
      typeof second === 'string' ? this.entries.find(({ parent, key }) => parent === first && key === second) : undefined
    return nested ?? (second === undefined ? this.section(first) : undefined)
  }

  /** The top-level entry that a line belongs to. */
  ownerOf(line: number): Entry | undefined {
    return this.entries.findLast((entry) => entry.parent === undefined && entry.line <= line)
  }
}

const inside = ({ start, end }: Span, offset: number): boolean => offset >= start && offset <= end

class Scanner {
  readonly entries: Draft[] = []
  rootIndent = -1
  private readonly source: SourceText
  private root: Draft | undefined
  private childIndent = -1
  private last: Draft | undefined

  constructor(source: SourceText) {
    this.source = source
    const first = /\S/.exec(source.text.slice(afterMark(source.text)))
    if (first?.[0] === '{') this.wholeFlow(afterMark(source.text) + first.index)
    else for (let line = 0; line < source.lineCount;) line = this.line(line)
  }

  private wholeFlow(start: number): void {
    const { pairs } = scanFlow(this.source.text, start)
    this.rootIndent = 0
    let top: Draft | undefined
    // A pair is told when its value has been read, so a section comes after its keys: put them in the order of the text.
    for (const pair of [...pairs].sort((a, b) => a.keySpan.start - b.keySpan.start)) {
      if (pair.depth === 1) top = this.flowEntry(pair, undefined)
      else if (pair.depth === 2 && top !== undefined) this.flowEntry(pair, top)
    }
  }

  private flowEntry(pair: FlowPair, parent: Draft | undefined): Draft {
    const { source } = this
    const text = source.text.slice(pair.valueSpan.start, pair.valueSpan.end)
    const nested = text.startsWith('{')
    const items = text.startsWith('[') ? scanFlow(source.text, pair.valueSpan.start).items : []
    const line = source.lineAt(pair.keySpan.start)
    const entry: Draft = {
      ...this.meaning(pair.key, parent, !nested),
      key: pair.key,
      keySpan: pair.keySpan,
      valueSpan: pair.valueSpan,
      value: text.startsWith('{') || text.startsWith('[') ? text : unquote(text),
      items: items.map((span) => ({ span, value: unquote(source.text.slice(span.start, span.end)) })),
      style:
        text === '' ? 'empty' : nested && parent === undefined ? 'section' : nested || text.startsWith('[') ? 'flow' : 'plain',
      indent: pair.keySpan.start - source.lineStart(line),
      line,
      lastLine: source.lineAt(pair.valueSpan.end),
      inFlow: true,
    }
    this.entries.push(entry)
    return entry
  }

  private meaning(key: string, parent: Draft | undefined, scalar: boolean): Pick<Draft, 'section' | 'parent' | 'field'> {
    const section = parent !== undefined && isSection(parent.key) ? parent.key : undefined
    const field =
      section !== undefined
        ? findField(section, key)
        : parent === undefined && key === 'model' && scalar
          ? findField('model', 'name')
          : undefined
    return { section, parent: parent?.key, field }
  }

  /** Reads one line; returns the number of the next one to read. */
  private line(number: number): number {
    const { source } = this
    const mark = number === 0 ? afterMark(source.text) : 0
    const line = source.line(number).slice(mark)
    const start = source.lineStart(number) + mark
    const trimmed = line.trim()
    if (trimmed === '' || trimmed.startsWith('#') || /^(?:---|\.\.\.|%)/.test(line)) return number + 1
    const match = keyPattern.exec(line)
    if (match !== null) {
      const next = this.keyLine(number, start, line, match)
      if (next !== undefined) return next
    }
    return this.continuation(number, start, line)
  }

  private keyLine(number: number, start: number, line: string, match: RegExpExecArray): number | undefined {
    const indent = match[1]!.length
    const rooted = this.rootIndent < 0 || indent <= this.rootIndent
    if (!rooted && this.root !== undefined && this.childIndent >= 0 && indent > this.childIndent) {
      // Deeper than the keys of the section: part of a value, unless it is a key that slipped.
      const name = unquote(match[2]!)
      const known = isSection(this.root.key) && findField(this.root.key, name) !== undefined
      if (!known || this.last?.style === 'block-list') return undefined
    }
    if (rooted) this.rootIndent = this.rootIndent < 0 ? indent : Math.min(this.rootIndent, indent)
    const parent = rooted ? undefined : this.root
    if (!rooted && parent === undefined) return undefined
    const keyEnd = start + indent + match[2]!.length
    const valueFrom = match[0].length + (/^[ \t]*/.exec(line.slice(match[0].length))?.[0].length ?? 0)
    const key = unquote(match[2]!)
    const body = this.value(number, start, line, valueFrom, indent)
    const entry: Draft = {
      ...this.meaning(key, parent, body.style !== 'section' && body.style !== 'empty'),
      key,
      keySpan: { start: start + indent, end: keyEnd },
      ...body,
      indent,
      line: number,
      inFlow: false,
    }
    this.entries.push(entry)
    if (rooted) {
      this.root = entry
      this.childIndent = -1
    } else {
      this.childIndent = this.childIndent < 0 ? indent : this.childIndent
      if (this.root!.style === 'empty') this.root!.style = 'section'
    }
    if (this.root !== undefined) this.root.lastLine = Math.max(this.root.lastLine, entry.lastLine)
    this.last = entry
    if (rooted && body.style === 'flow' && body.value.startsWith('{')) {
      entry.style = 'section'
      entry.field = undefined
      for (const pair of scanFlow(this.source.text, body.valueSpan.start).pairs) if (pair.depth === 1) this.flowEntry(pair, entry)
      // The keys are told inner first; the text's order is what everything else expects.
      this.entries.sort((a, b) => a.keySpan.start - b.keySpan.start)
    }
    return entry.lastLine + 1
  }

  private value(
    number: number,
    start: number,
    line: string,
    from: number,
    indent: number,
  ): Pick<Draft, 'valueSpan' | 'value' | 'items' | 'style' | 'lastLine'> {
    const { source } = this
    const head = line[from]
    const at = start + from
    if (head === undefined || head === '#') {
      const behind = Math.min(start + line.length, start + line.indexOf(':', indent) + 2)
      const span = head === '#' ? Math.min(behind, at) : at
      return { valueSpan: { start: span, end: span }, value: '', items: [], style: 'empty', lastLine: number }
    }
    if (/^[|>][-+0-9]*[ \t]*(?:#.*)?$/.test(line.slice(from))) {
      let last = number
      for (let next = number + 1; next < source.lineCount; next++) {
        const text = source.line(next)
        if (text.trim() === '') continue
        if (/^[ \t]*/.exec(text)![0].length <= indent) break
        last = next
      }
      return {
        valueSpan: { start: at, end: source.lineEnd(last) },
        value: source.text.slice(at, source.lineEnd(last)),
        items: [],
        style: 'block-text',
        lastLine: last,
      }
    }
    if (head === '{' || head === '[') {
      const { end, items } = scanFlow(source.text, at)
      let stop = end
      while (stop > at && /\s/.test(source.text[stop - 1]!)) stop--
      return {
        valueSpan: { start: at, end: stop },
        value: source.text.slice(at, stop),
        style: 'flow',
        lastLine: source.lineAt(stop),
        items: items.map((span) => ({ span, value: unquote(source.text.slice(span.start, span.end)) })),
      }
    }
    const end = scalarEnd(line, from)
    return {
      valueSpan: { start: at, end: start + end },
      value: unquote(line.slice(from, end)),
      items: [],
      style: 'plain',
      lastLine: number,
    }
  }

  /** A line without a key of its own: an item of a list, or more of the value above. */
  private continuation(number: number, start: number, line: string): number {
    const { last } = this
    if (last === undefined) return number + 1
    last.lastLine = number
    if (this.root !== undefined) this.root.lastLine = number
    const item = itemPattern.exec(line)
    if (item !== null && (last.style === 'empty' || last.style === 'block-list') && item[1]!.length >= last.indent) {
      last.style = 'block-list'
      const from = item[0].length
      const end = scalarEnd(line, from)
      last.items.push({
        span: { start: start + from, end: Math.max(start + from, start + end) },
        value: unquote(line.slice(from, end)),
      })
    } else if (last.style === 'empty' && last.field !== undefined) {
      const from = /\S/.exec(line)!.index
      const end = scalarEnd(line, from)
      last.style = 'plain'
      last.valueSpan = { start: start + from, end: start + end }
      last.value = unquote(line.slice(from, end))
    }
    return number + 1
  }
}
