/** An element of a JSON array, as text. */
export interface ArrayElement {
  readonly text: string
  /** Counts from 1. */
  readonly line: number
}

/** Why a text is no array of rows; `line` counts from 1. */
export class ScanFailure extends Error {
  readonly line: number

  constructor(message: string, line: number) {
    super(message)
    this.line = line
  }
}

const isSpace = (code: number): boolean => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09
const [quoteCode, commaCode, colonCode, openList, closeList, openObject, closeObject] = [0x22, 0x2c, 0x3a, 0x5b, 0x5d, 0x7b, 0x7d]

/**
 * Cuts `[row, row, …]`, or the list under the key `data` of `{…}`, into the texts of its rows while the text comes in pieces.
 * It knows only strings and brackets; whether a row is JSON is decided by who parses it.
 */
export class ArrayScanner {
  private line = 1
  /** Brackets that are open, by the code that closes them. */
  private readonly open: number[] = []
  /** Depth of the elements wanted; 0 until their list has begun, −1 when it has ended. */
  private target = 0
  private inString = false
  private escaped = false
  /** The string being read at depth 1 of an object, and the last one read: a key when a colon follows. */
  private name = ''
  private key = ''
  /** Pieces of the current element, its first line, and whether anything but space has come. */
  private pieces: string[] = []
  private startLine = 0
  private begun = false
  private readonly onlyData: boolean

  /** `wrapped`: the text is an object that has the list under `data`. */
  constructor(wrapped: boolean) {
    this.onlyData = wrapped
  }

  /** The elements that end in this piece of the text. */
  push(text: string): ArrayElement[] {
    const found: ArrayElement[] = []
    let from = this.begun ? 0 : -1
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at)
      if (code === 0x0a) this.line++
      if (this.inString) {
        this.readString(text, at, code)
        continue
      }
      if (isSpace(code)) continue
      const inElement = this.target > 0 && this.depth >= this.target
      const endsElement = inElement && this.depth === this.target && (code === commaCode || code === closeList)
      if (endsElement) {
        this.finish(found, text, from, at, code)
        from = -1
        if (code === closeList) this.close(code)
        continue
      }
      if (inElement && !this.begun) {
        this.begun = true
        this.startLine = this.line
        from = at
      }
      this.structure(text, at, code)
    }
    if (this.begun) this.pieces.push(text.slice(Math.max(0, from)))
    return found
  }

  /** Checks that the list was there and is complete. */
  end(): void {
    const missing = this.onlyData ? 'an object without a list under the key "data"' : 'no list of rows'
    if (this.target === 0) throw new ScanFailure(missing, 1)
    if (this.inString || this.depth > 0) throw new ScanFailure('the file ends inside the list of rows', this.line)
  }

  private get depth(): number {
    return this.open.length
  }

  private readString(text: string, at: number, code: number): void {
    if (this.escaped) this.escaped = false
    else if (code === 0x5c) this.escaped = true
    else if (code === quoteCode) {
      this.inString = false
      if (this.depth === 1) this.key = this.name
      return
    }
    if (this.depth === 1 && this.target === 0 && this.name.length < 64) this.name += text[at]!
  }

  private structure(text: string, at: number, code: number): void {
    if (code === quoteCode) {
      this.inString = true
      this.name = ''
    } else if (code === openList || code === openObject) {
      const wanted = this.onlyData ? this.depth === 1 && this.key === 'data' : this.depth === 0
      if (this.target === -1 && this.depth === 0) throw new ScanFailure('there is more after the end of the list', this.line)
      this.open.push(code === openList ? closeList : closeObject)
      if (code === openList && wanted && this.target === 0) this.target = this.depth
    } else if (code === closeList || code === closeObject) this.close(code)
    else if (code === commaCode && this.depth === 1) this.key = ''
    else if (this.depth === 0 && this.target === -1) throw new ScanFailure('there is more after the end of the list', this.line)
    else if (this.depth === 0) throw new ScanFailure(`unexpected "${text[at]!}"`, this.line)
    else if (code !== colonCode && this.target === 0 && this.depth === 1) this.key = ''
  }

  private close(code: number): void {
    if (this.open.at(-1) !== code) throw new ScanFailure(`unexpected "${String.fromCharCode(code)}"`, this.line)
    if (this.depth === this.target) this.target = -1
    this.open.pop()
  }

  private finish(found: ArrayElement[], text: string, from: number, at: number, code: number): void {
    const element = this.pieces.join('') + (from < 0 ? '' : text.slice(from, at))
    const begun = this.begun
    this.pieces = []
    this.begun = false
    if (begun) found.push({ text: element, line: this.startLine })
    else if (code === commaCode) throw new ScanFailure('a row is missing before ","', this.line)
  }
}
