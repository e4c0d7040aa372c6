import type { DocumentSymbol, FoldingRange } from 'vscode-languageserver'
import { Outline, type Entry } from './outline.ts'
import type { SourceText } from './text.ts'

/** Kinds of symbols, as the protocol numbers them. */
const symbolKind = { module: 2, property: 7, string: 15, number: 16, boolean: 17, array: 18, key: 20 } as const

function kindOf({ field, style }: Entry): DocumentSymbol['kind'] {
  if (style === 'block-list' || (style === 'flow' && field?.meta.kind === 'list')) return symbolKind.array
  switch (field?.meta.kind) {
    case 'boolean':
      return symbolKind.boolean
    case 'integer':
    case 'number':
      return symbolKind.number
    case 'list':
      return symbolKind.array
    case 'text':
    case 'choice':
      return symbolKind.string
    default:
      return symbolKind.key
  }
}

function symbol({ source }: Outline, entry: Entry, children?: DocumentSymbol[]): DocumentSymbol {
  const start = entry.keySpan.start
  const end = Math.max(entry.valueSpan.end, entry.keySpan.end, entry.inFlow ? 0 : source.lineEnd(entry.lastLine))
  const value =
    entry.style === 'block-list'
      ? entry.items.map((item) => item.value).join(', ')
      : entry.style === 'section'
        ? ''
        : entry.value.split(/\r?\n/)[0]!
  return {
    name: entry.key === '' ? '?' : entry.key,
    detail: value.length > 60 ? `${value.slice(0, 59)}…` : value,
    kind: children === undefined ? kindOf(entry) : symbolKind.module,
    range: source.range({ start, end }),
    selectionRange: source.range(entry.keySpan),
    ...(children === undefined ? {} : { children }),
  }
}

/** The outline of a recipe: sections with their keys. */
export function documentSymbols(source: SourceText): DocumentSymbol[] {
  const outline = new Outline(source)
  // By place and not by name: a section that is written twice keeps its keys apart.
  const groups: { readonly section: Entry; readonly children: Entry[] }[] = []
  for (const entry of outline.entries) {
    if (entry.parent === undefined) groups.push({ section: entry, children: [] })
    else groups.at(-1)?.children.push(entry)
  }
  return groups.map(({ section, children }) =>
    symbol(
      outline,
      section,
      section.style === 'section' || section.style === 'empty' ? children.map((child) => symbol(outline, child)) : undefined,
    ),
  )
}

/** Sections, long values and blocks of comments. */
export function foldingRanges(source: SourceText): FoldingRange[] {
  const outline = new Outline(source)
  const ranges: FoldingRange[] = outline.entries
    .filter(({ line, lastLine, inFlow }) => lastLine > line && !inFlow)
    .map(({ line, lastLine }) => ({ startLine: line, endLine: lastLine }))
  let first = -1
  for (let line = 0; line <= source.lineCount; line++) {
    const comment = line < source.lineCount && source.line(line).trimStart().startsWith('#')
    if (comment && first < 0) first = line
    else if (!comment && first >= 0) {
      if (line - first > 1) ranges.push({ startLine: first, endLine: line - 1, kind: 'comment' })
      first = -1
    }
  }
  return ranges
}
