import {
  Composer,
  Lexer,
  LineCounter,
  Parser,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  type Document,
  type CST,
  type Node,
  type ParsedNode,
} from 'yaml'
import { say, type PathPart, type Said } from '#shared/recipe.ts'

/** Recipes are small; these bounds keep hostile files from costing time, memory or the stack. */
export const maxRecipeBytes = 256 * 1024
const maxDepth = 32
const maxAliases = 100
const maxNodes = 20_000
const maxProblems = 100

/** Place in the text, both from 1; columns count UTF-16 units, as editors do. */
export interface Place {
  readonly line: number
  readonly column: number
}

export interface TextRange {
  readonly start: Place
  readonly end: Place
}

export interface SyntaxProblem {
  readonly code: 'syntax' | 'duplicate_key'
  readonly said: Said
  readonly range: TextRange
}

/** A YAML or JSON text as plain values that remember where they stood. */
export interface RecipeDocument {
  readonly value: unknown
  readonly problems: readonly SyntaxProblem[]
  /** Range of the key or the value at a path, or of the nearest part above it that exists. */
  readonly rangeAt: (path: readonly PathPart[], at: 'key' | 'value') => TextRange
  /** Source text of the scalar at a path. */
  readonly written: (path: readonly PathPart[]) => string | undefined
}

interface Spot {
  key?: readonly [number, number]
  value?: readonly [number, number]
  written?: string
}

const pathKey = (path: readonly PathPart[]): string => JSON.stringify(path)

class TooMuch extends Error {
  readonly said: Said

  constructor(said: Said) {
    super(said.message)
    this.said = said
  }
}

/** A first line that says what to do, for the mistakes that people make. */
function friendly(code: string, message: string): Said {
  if (code === 'TAB_AS_INDENT') return say`a tab is not allowed as indentation; use two spaces`
  if (code === 'BAD_INDENT' && !message.startsWith('Flow')) {
    return say`the indentation does not match the lines above; keys of one section start in the same column`
  }
  if (code === 'MULTIPLE_DOCS') return say`a recipe is one document; remove the --- and what follows`
  return say`this is not valid YAML: ${(message.split('\n')[0] ?? message).replace(/\s+$/, '')}`
}

/** Converts nodes to plain values, recording places; refuses what only hostile files have. */
class Reader {
  readonly spots = new Map<string, Spot>()
  readonly problems: { code: SyntaxProblem['code']; said: Said; at: readonly [number, number] }[] = []
  private nodes = 0
  private aliases = 0
  private readonly document: Document.Parsed

  constructor(document: Document.Parsed) {
    this.document = document
  }

  read(node: Node | null, path: readonly PathPart[], depth = 0): unknown {
    if (++this.nodes > maxNodes) throw new TooMuch(say`a recipe has at most ${maxNodes} values`)
    if (depth > maxDepth) throw new TooMuch(say`values are nested more than ${maxDepth} deep`)
    const target = this.resolve(node)
    if (target === null) return null
    if (node?.range) this.spot(path).value = [node.range[0], node.range[1]]
    if (isScalar(target)) {
      const { value, source } = target
      if (source !== undefined) this.spot(path).written = source
      return value === null || ['string', 'number', 'boolean'].includes(typeof value) ? value : (source ?? null)
    }
    if (isSeq(target)) return target.items.map((item, index) => this.read(item as Node | null, [...path, index], depth + 1))
    if (isMap(target)) return this.readMap(target.items, path, depth)
    return null
  }

  private readMap(items: readonly { key: unknown; value: unknown }[], path: readonly PathPart[], depth: number): unknown {
    // A null prototype: a key named __proto__ is a key like any other.
    const result = Object.create(null) as Record<string, unknown>
    const own = new Set<string>()
    const merged: unknown[] = []
    for (const { key, value } of items) {
      const keyNode = this.resolve(key as Node | null)
      const keyRange = (key as Node | null)?.range
      const at = [keyRange?.[0] ?? 0, keyRange?.[1] ?? 0] as const
      if (keyNode !== null && !isScalar(keyNode)) {
        this.problems.push({ code: 'syntax', said: say`a key must be a plain name`, at })
        continue
      }
      const name = keyNode?.source ?? ''
      if (name === '<<') {
        merged.push(this.read(value as Node | null, [...path, name], depth + 1))
        continue
      }
      if (own.has(name)) {
        this.problems.push({ code: 'duplicate_key', said: say`${[...path, name].join('.')} is written twice; keep one`, at })
        continue
      }
      own.add(name)
      this.spot([...path, name]).key = at
      result[name] = this.read(value as Node | null, [...path, name], depth + 1)
    }
    for (const source of merged.flat()) {
      if (typeof source !== 'object' || source === null) continue
      for (const [name, value] of Object.entries(source)) if (!own.has(name) && !(name in result)) result[name] = value
    }
    return result
  }

  private resolve(node: Node | null): Node | null {
    if (!isAlias(node)) return node
    if (++this.aliases > maxAliases) throw new TooMuch(say`a recipe has at most ${maxAliases} aliases`)
    const target = node.resolve(this.document)
    return target === undefined || isAlias(target) ? null : target
  }

  private spot(path: readonly PathPart[]): Spot {
    const key = pathKey(path)
    let spot = this.spots.get(key)
    if (spot === undefined) this.spots.set(key, (spot = {}))
    return spot
  }
}

/**
 * Composes the document, or returns the offset where the nesting goes too deep: the composer recurses, and running out
 * of stack inside it can end the process.
 */
function compose(text: string, lines: LineCounter): Document.Parsed<ParsedNode>[] | number {
  const parser = new Parser(lines.addNewLine)
  const tokens: CST.Token[] = []
  lines.addNewLine(0)
  for (const lexeme of new Lexer().lex(text)) {
    for (const token of parser.next(lexeme)) tokens.push(token)
    if (parser.stack.length > 2 * maxDepth) return parser.offset
  }
  for (const token of parser.end()) tokens.push(token)
  const composer = new Composer<ParsedNode>({ schema: 'core', merge: false, uniqueKeys: false, prettyErrors: false })
  return [...composer.compose(tokens)] as Document.Parsed<ParsedNode>[]
}

/** Parses YAML or JSON. Never throws: what is wrong is in `problems`. */
export function parseDocument(source: string, { json = false }: { json?: boolean } = {}): RecipeDocument {
  // YAML forbids tabs as indentation, JSON does not; a space for each keeps the columns.
  const text = json ? source.replaceAll('\t', ' ') : source
  const lines = new LineCounter()
  const place = (offset: number): Place => {
    const { line, col } = lines.linePos(Math.max(0, Math.min(offset, text.length)))
    return line === 0 ? { line: 1, column: offset + 1 } : { line, column: col }
  }
  const range = ([from, to]: readonly [number, number]): TextRange => ({ start: place(from), end: place(Math.max(from, to)) })
  const failed = (said: Said, offset: number): RecipeDocument => {
    const at = range([offset, offset])
    return { value: null, problems: [{ code: 'syntax', said, range: at }], rangeAt: () => at, written: () => undefined }
  }

  const documents = compose(text, lines)
  if (typeof documents === 'number') return failed(say`values are nested more than ${maxDepth} deep`, documents)
  const [document, second] = documents
  if (document === undefined) return failed(say`the recipe is empty`, 0)
  const problems: SyntaxProblem[] = [...document.errors, ...document.warnings]
    .slice(0, maxProblems)
    .map((error) => ({ code: 'syntax', said: friendly(error.code, error.message), range: range(error.pos) }))
  if (second !== undefined) {
    const offset = second.range[0]
    problems.push({ code: 'syntax', said: friendly('MULTIPLE_DOCS', ''), range: range([offset, offset]) })
  }
  const reader = new Reader(document)
  let value: unknown = null
  try {
    value = reader.read(document.contents, [])
  } catch (error) {
    if (!(error instanceof TooMuch)) throw error
    return failed(error.said, 0)
  }
  if (value === null && problems.length === 0) return failed(say`the recipe is empty`, 0)
  for (const { code, said, at } of reader.problems.slice(0, maxProblems)) problems.push({ code, said, range: range(at) })

  const rangeAt = (path: readonly PathPart[], at: 'key' | 'value'): TextRange => {
    for (let length = path.length; length > 0; length--) {
      const spot = reader.spots.get(pathKey(path.slice(0, length)))
      if (spot === undefined) continue
      // A section is pointed at by its name, not by all that it holds.
      const found = length < path.length || at === 'key' ? (spot.key ?? spot.value) : (spot.value ?? spot.key)
      if (found !== undefined) return range(found)
    }
    return range([0, 0])
  }
  return { value, problems, rangeAt, written: (path) => reader.spots.get(pathKey(path))?.written }
}
