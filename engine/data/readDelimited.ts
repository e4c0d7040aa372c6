import { quote } from '../io/printable.ts'
import { chunksOf, textOf } from './fileChunks.ts'
import { dataError, rowLimit, utf8Hint, type SourceRow } from './row.ts'

interface Record {
  readonly fields: readonly string[]
  /** Counts from 1; where the record begins. */
  readonly line: number
}

/** A quotation mark that stands where none can; `line` counts from 1. */
class DelimitedFailure extends Error {
  readonly line: number

  constructor(message: string, line: number) {
    super(message)
    this.line = line
  }
}

/**
 * Records of delimited text (RFC 4180) that comes in pieces: fields in quotation marks may hold delimiters, line ends and doubled
 * quotation marks. Blank lines hold no record.
 */
export class DelimitedScanner {
  private readonly delimiter: string
  private fields: string[] = []
  private field = ''
  /** `after`: a quoted field has ended, or a quotation mark of it is doubled. */
  private state: 'start' | 'plain' | 'quoted' | 'after' = 'start'
  private line = 1
  private startLine = 1
  private quoteLine = 1
  private heldReturn = false
  private size = 0

  constructor(delimiter: string) {
    this.delimiter = delimiter
  }

  push(text: string): Record[] {
    const records: Record[] = []
    for (let at = 0; at < text.length; at++) {
      const character = text[at]!
      if (this.state === 'quoted') {
        at = this.readQuoted(text, at)
        continue
      }
      // \r\n and a lone \r end a line once.
      const follows = this.heldReturn && character === '\n'
      this.heldReturn = character === '\r'
      if (follows) continue
      if (character === '\n' || character === '\r') {
        this.endRecord(records)
        this.line++
        this.startLine = this.line
      } else if (character === this.delimiter) this.endField()
      else if (character === '"' && this.state !== 'plain') {
        if (this.state === 'after') this.field += '"'
        else this.quoteLine = this.line
        this.state = 'quoted'
      } else if (this.state === 'after')
        throw new DelimitedFailure(`text after the closing quotation mark: ${quote(character)}`, this.line)
      else at = this.readPlain(text, at)
    }
    if (this.size > rowLimit) throw new DelimitedFailure('the row is longer than 256 MiB', this.startLine)
    return records
  }

  end(): Record[] {
    if (this.state === 'quoted') throw new DelimitedFailure('a quotation mark is opened and never closed', this.quoteLine)
    const records: Record[] = []
    this.endRecord(records)
    return records
  }

  private readQuoted(text: string, at: number): number {
    const close = text.indexOf('"', at)
    const part = text.slice(at, close < 0 ? text.length : close)
    for (let end = part.indexOf('\n'); end >= 0; end = part.indexOf('\n', end + 1)) this.line++
    this.field += part
    this.size += part.length
    if (close < 0) return text.length
    this.state = 'after'
    return close
  }

  private readPlain(text: string, at: number): number {
    let end = at
    while (end < text.length && text[end] !== this.delimiter && text[end] !== '\n' && text[end] !== '\r') end++
    this.field += text.slice(at, end)
    this.size += end - at
    this.state = 'plain'
    return end - 1
  }

  private endField(): void {
    this.fields.push(this.field)
    this.field = ''
    this.state = 'start'
  }

  private endRecord(records: Record[]): void {
    const blank = this.fields.length === 0 && this.field.trim() === '' && this.state !== 'after'
    if (blank) this.field = ''
    else {
      this.endField()
      records.push({ fields: this.fields, line: this.startLine })
    }
    this.fields = []
    this.state = 'start'
    this.size = 0
  }
}

/** The delimiter of a file: a tab in .tsv, else whichever of comma, semicolon and tab the first line has most of. */
function delimiterOf(file: string, head: string): string {
  if (/\.tsv(\.gz)?$/i.test(file)) return '\t'
  const first =
    head
      .replace(/"[^"]*"?/g, '')
      .split(/[\r\n]/)
      .find((line) => line.trim() !== '') ?? ''
  const count = (delimiter: string): number => first.split(delimiter).length
  return [',', ';', '\t'].reduce((best, delimiter) => (count(delimiter) > count(best) ? delimiter : best))
}

function checkedHeader(file: string, { fields, line }: Record): readonly string[] {
  const names = fields.map((name) => name.trim())
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined)
    throw dataError(
      file,
      line,
      `two columns are called ${quote(twice)}`,
      'The first line names the columns: give each its own name.',
    )
  return names
}

/** Rows of a CSV or TSV file: the first line names the columns, every value is text. */
export async function* readDelimited(file: string): AsyncGenerator<SourceRow> {
  let scanner: DelimitedScanner | undefined
  let header: readonly string[] | undefined
  let line = 1
  const rows = function* (records: readonly Record[]): Generator<SourceRow> {
    for (const record of records) {
      line = record.line
      if (header === undefined) {
        header = checkedHeader(file, record)
        continue
      }
      const { fields } = record
      if (fields.length === header.length)
        yield { file, line, value: Object.fromEntries(header.map((name, index) => [name, fields[index]!])) }
      else {
        const message = `the row has ${fields.length} fields, but the first line names ${header.length} columns`
        const hint = 'Put fields that hold the delimiter or a quotation mark in quotation marks, or set data.skip_bad_rows.'
        yield { file, line, problem: { message, hint } }
      }
    }
  }
  try {
    for await (const text of textOf(chunksOf(file), (error) =>
      dataError(file, line, 'not UTF-8 text here or in the lines that follow', utf8Hint, error),
    )) {
      scanner ??= new DelimitedScanner(delimiterOf(file, text))
      yield* rows(scanner.push(text))
    }
    if (scanner !== undefined) yield* rows(scanner.end())
  } catch (error) {
    if (!(error instanceof DelimitedFailure)) throw error
    throw dataError(file, error.line, error.message, 'A quotation mark inside a quoted field is written twice.', error)
  }
}
