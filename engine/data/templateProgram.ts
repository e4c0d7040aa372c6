import { parse, tokenize } from '@huggingface/jinja'
import { isJsonObject } from '../io/jsonText.ts'
import type { TemplateNode } from './templateInterpreter.ts'

const strips = new Set(['strip', 'lstrip', 'rstrip'])

const identifier = (value: string): Record<string, unknown> => ({ type: 'Identifier', value })
const call = (name: string, args: readonly unknown[]): Record<string, unknown> => ({
  type: 'CallExpression',
  callee: identifier(name),
  args,
})

/** The node that stands for another one, or itself. */
function replaced(node: Record<string, unknown>): Record<string, unknown> {
  const { callee, args, filter, operand } = node
  if (
    node.type === 'CallExpression' &&
    isJsonObject(callee) &&
    callee.type === 'MemberExpression' &&
    callee.computed !== true &&
    isJsonObject(callee.property)
  ) {
    const name = String(callee.property.value)
    if (strips.has(name) && Array.isArray(args) && args.length > 0)
      return call(`__${name}`, [callee.object, ...(args as unknown[])])
  }
  if (node.type === 'FilterExpression' && isJsonObject(filter) && filter.type === 'Identifier') {
    if (filter.value === 'trim') return call('__trim', [operand])
  }
  const filtered =
    node.type === 'FilterExpression' && isJsonObject(filter) && isJsonObject(filter.callee) ? String(filter.callee.value) : ''
  // Jinja's filters of lists take None as long as nothing asks for the result.
  if (['selectattr', 'rejectattr'].includes(filtered))
    node.operand = {
      type: 'BinaryExpression',
      operator: { type: 'Or', value: 'or' },
      left: operand,
      right: { type: 'ArrayLiteral', value: [] },
    }
  return node
}

function walk(value: unknown): unknown {
  if (Array.isArray(value)) {
    for (const [index, inner] of value.entries()) value[index] = walk(inner)
    return value
  }
  if (value instanceof Map) return new Map([...value].map(([key, inner]) => [walk(key), walk(inner)]))
  if (typeof value !== 'object' || value === null) return value
  const node = value as Record<string, unknown>
  for (const [key, inner] of Object.entries(node)) node[key] = walk(inner)
  return replaced(node)
}

/**
 * Python's str.strip and its kin. `chars`: which characters, default white space. By hand: a pattern would look at each space
 * again and again.
 */
const strip =
  (sides: 'both' | 'left' | 'right') =>
  (text: unknown, chars?: unknown): string => {
    if (typeof text !== 'string') return ''
    const taken = typeof chars === 'string' ? new Set(chars) : undefined
    const isTaken = (character: string): boolean => (taken === undefined ? /\s/.test(character) : taken.has(character))
    let [from, to] = [0, text.length]
    if (sides !== 'right') while (from < to && isTaken(text[from]!)) from++
    if (sides !== 'left') while (to > from && isTaken(text[to - 1]!)) to--
    return text.slice(from, to)
  }

/** What the programs call where @huggingface/jinja 0.5.11 differs from Jinja: strip with characters, trim of nothing. */
export const templateFunctions: Readonly<Record<string, unknown>> = {
  __strip: strip('both'),
  __lstrip: strip('left'),
  __rstrip: strip('right'),
  __trim: strip('both'),
}

/** A template ready to run with `templateFunctions`. */
export const parseTemplate = (source: string): TemplateNode =>
  walk(parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }))) as TemplateNode
