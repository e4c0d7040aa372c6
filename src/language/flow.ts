import type { Span } from './text.ts'

/** A key of a flow mapping with its value, at its depth below the scanned value. */
export interface FlowPair {
  readonly depth: number
  readonly key: string
  readonly keySpan: Span
  readonly valueSpan: Span
}

export interface FlowScan {
  /** Behind the closing bracket, or where the text stopped making sense. */
  readonly end: number
  readonly closed: boolean
  readonly pairs: readonly FlowPair[]
  /** Items of the outermost list. */
  readonly items: readonly Span[]
}

/** Behind the closing quote, or the end of the line when there is none. */
export function quotedEnd(text: string, start: number): number {
  const quote = text[start]
  for (let at = start + 1; at < text.length; at++) {
    const char = text[at]
    if (char === '\n' || char === '\r') return at
    if (quote === '"' && char === '\\') at++
    else if (char === quote) {
      if (quote === "'" && text[at + 1] === "'") at++
      else return at + 1
    }
  }
  return text.length
}

/** A top-level key in block style: what an unclosed bracket must not swallow. */
const blockKey = /^[A-Za-z_][\w-]*[ \t]*:(?=\s|$)/
const maxDepth = 40

/** Reads `{…}` or `[…]` at `start` as far as it goes; broken text never makes it fail. */
export function scanFlow(text: string, start: number): FlowScan {
  const pairs: FlowPair[] = []
  const items: Span[] = []
  let at = start

  const stops = (): boolean => (text[at] === '\n' || text[at] === '\r') && blockKey.test(text.slice(at + 1, at + 65))
  /** Skips white space and comments; false at the end of what can belong to the value. */
  const skip = (): boolean => {
    for (; at < text.length; at++) {
      const char = text[at]!
      if (char === '#' && /\s/.test(text[at - 1] ?? ' ')) {
        while (at + 1 < text.length && text[at + 1] !== '\n' && text[at + 1] !== '\r') at++
      } else if (char === '\n' || char === '\r') {
        if (stops()) return false
      } else if (char !== ' ' && char !== '\t' && char !== '\ufeff') return true
    }
    return false
  }
  const scalar = (inMap: boolean, isKey: boolean): Span => {
    const from = at
    if (text[at] === '"' || text[at] === "'") {
      at = quotedEnd(text, at)
      return { start: from, end: at }
    }
    while (at < text.length) {
      const char = text[at]!
      if (',[]{}\n\r'.includes(char)) break
      if (char === ':' && isKey && /[\s,[\]{}]/.test(text[at + 1] ?? ' ')) break
      if (char === '#' && /\s/.test(text[at - 1] ?? '')) break
      at++
    }
    let end = at
    while (end > from && /\s/.test(text[end - 1]!)) end--
    if (at === from && inMap && !',]}'.includes(text[at] ?? ',')) at++
    return { start: from, end }
  }
  const value = (depth: number, inMap: boolean): Span => {
    const from = at
    const closed = text[at] === '{' ? map(depth + 1) : text[at] === '[' ? list(depth + 1) : undefined
    if (closed === undefined) return scalar(inMap, false)
    return { start: from, end: at }
  }
  const map = (depth: number): boolean => {
    at++
    while (skip()) {
      if (text[at] === '}') {
        at++
        return true
      }
      if (text[at] === ',' || text[at] === ']' || depth > maxDepth) {
        at++
        continue
      }
      if (text[at] === '{' || text[at] === '[') {
        value(depth, true)
        continue
      }
      const keySpan = scalar(true, true)
      let valueSpan: Span = { start: keySpan.end, end: keySpan.end }
      const more = skip()
      if (more && text[at] === ':') {
        at++
        valueSpan = { start: at, end: at }
        if (skip() && !',}]'.includes(text[at]!)) valueSpan = value(depth, true)
      }
      if (keySpan.end > keySpan.start)
        pairs.push({ depth, key: unquote(text.slice(keySpan.start, keySpan.end)), keySpan, valueSpan })
      if (!more) return false
    }
    return false
  }
  const list = (depth: number): boolean => {
    at++
    while (skip()) {
      if (text[at] === ']') {
        at++
        return true
      }
      if (text[at] === ',' || text[at] === '}' || depth > maxDepth) {
        at++
        continue
      }
      const before = at
      const item = value(depth, false)
      if (at === before) at++
      else if (depth === 1) items.push(item)
    }
    return false
  }
  const closed = text[at] === '{' ? map(1) : list(1)
  return { end: at, closed, pairs, items }
}

/** The text of a scalar without its quotes; an unclosed quote is taken off too. */
export function unquote(source: string): string {
  const text = source.trim()
  const quote = text[0]
  if (quote !== '"' && quote !== "'") return text
  const body = text.length > 1 && text.endsWith(quote) ? text.slice(1, -1) : text.slice(1)
  if (quote === "'") return body.replaceAll("''", "'")
  try {
    return JSON.parse(`"${body}"`) as string
  } catch {
    return body.replaceAll('\\"', '"').replaceAll('\\\\', '\\')
  }
}
