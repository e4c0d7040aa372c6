import type { Position, Range, TextEdit } from 'vscode-languageserver'

/** A stretch of the text, in UTF-16 units from its start; the end is exclusive. */
export interface Span {
  readonly start: number
  readonly end: number
}

/** A text with its lines, in the positions of the language server protocol: from 0, in UTF-16 units. */
export class SourceText {
  readonly text: string
  /** What ends a line here; new lines end the same way. */
  readonly eol: string
  private readonly starts: readonly number[]

  constructor(text: string) {
    this.text = text
    const starts = [0]
    for (const match of text.matchAll(/\r\n|\n|\r/g)) starts.push(match.index + match[0].length)
    this.starts = starts
    this.eol = text.includes('\r\n') ? '\r\n' : '\n'
  }

  get lineCount(): number {
    return this.starts.length
  }

  lineStart(line: number): number {
    return this.starts[Math.max(0, Math.min(line, this.starts.length - 1))]!
  }

  /** Where a line ends, its line break not counted. */
  lineEnd(line: number): number {
    const next = this.starts[line + 1]
    if (next === undefined) return this.text.length
    const end = next - 1
    return end > this.lineStart(line) && this.text[end] === '\n' && this.text[end - 1] === '\r' ? end - 1 : end
  }

  /** A line without its line break. */
  line(line: number): string {
    return this.text.slice(this.lineStart(line), this.lineEnd(line))
  }

  lineAt(offset: number): number {
    let low = 0
    let high = this.starts.length - 1
    while (low < high) {
      const middle = (low + high + 1) >> 1
      if (this.starts[middle]! <= offset) low = middle
      else high = middle - 1
    }
    return low
  }

  position(offset: number): Position {
    const inside = Math.max(0, Math.min(offset, this.text.length))
    const line = this.lineAt(inside)
    return { line, character: Math.min(inside, this.lineEnd(line)) - this.lineStart(line) }
  }

  /** Positions beyond the end of a line or of the text are taken for the end. */
  offset({ line, character }: Position): number {
    if (line >= this.lineCount) return this.text.length
    if (line < 0) return 0
    return Math.min(this.lineStart(line) + Math.max(0, character), this.lineEnd(line))
  }

  range({ start, end }: Span): Range {
    return { start: this.position(start), end: this.position(end) }
  }

  span(range: Range): Span {
    return { start: this.offset(range.start), end: this.offset(range.end) }
  }

  edit(span: Span, newText: string): TextEdit {
    return { range: this.range(span), newText }
  }
}

/** Where a byte order mark ends. */
export const afterMark = (text: string): number => (text.charCodeAt(0) === 0xfeff ? 1 : 0)

/** The text with edits applied. Edits must not overlap; insertions at one place come in their order. */
export function applyEdits(source: SourceText, edits: readonly TextEdit[]): string {
  const spans = edits.map((edit, index) => ({ ...source.span(edit.range), newText: edit.newText, index }))
  spans.sort((a, b) => b.start - a.start || b.end - a.end || b.index - a.index)
  return spans.reduce((text, { start, end, newText }) => text.slice(0, start) + newText + text.slice(end), source.text)
}
