import { parse, tokenize } from '@huggingface/jinja'
import { isJsonObject } from '../io/jsonText.ts'

type Program = ReturnType<typeof parse>

const strips = new Set(['strip', 'lstrip', 'rstrip'])

const identifier = (value: string): Record<string, unknown> => ({ type: 'Identifier', value })
const call = (name: string, args: readonly unknown[]): Record<string, unknown> => ({ type: 'CallExpression', callee: identifier(name), args })

/** The node that stands for another one, or itself. */
function replaced(node: Record<string, unknown>): Record<string, unknown> {
  const { callee, args, filter, operand } = node
  if (node.type === 'CallExpression' && isJsonObject(callee) && callee.type === 'MemberExpression' && callee.computed !== true && isJsonObject(callee.property)) {
    const name = String(callee.property.value)
    if (strips.has(name) && Array.isArray(args) && args.length > 0) return call(`__${name}`, [callee.object, ...(args as unknown[])])
  }
  if (node.type === 'FilterExpression' && isJsonObject(filter) && filter.type === 'Identifier') {
    if (filter.value === 'trim') return call('__trim', [operand])
    if (filter.value === 'min' || filter.value === 'max') return call(`__${filter.value}`, [operand])
  }
  const filtered = node.type === 'FilterExpression' && isJsonObject(filter) && isJsonObject(filter.callee) ? String(filter.callee.value) : ''
  // Jinja's filters of lists take None as long as nothing asks for the result.
  if (['selectattr', 'rejectattr'].includes(filtered))
    node.operand = { type: 'BinaryExpression', operator: { type: 'Or', value: 'or' }, left: operand, right: { type: 'ArrayLiteral', value: [] } }
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

const escaped = (text: string): string => text.replace(/[\\^\]-]/g, '\\$&')

/** Python's str.strip and its kin. `chars`: which characters, default white space. */
const strip = (sides: 'both' | 'left' | 'right') => (text: unknown, chars?: unknown): string => {
  const set = typeof chars === 'string' ? `[${escaped(chars)}]` : '\\s'
  const from = sides === 'right' || set === '[]' ? '' : new RegExp(`^${set}+`, 'u')
  const to = sides === 'left' || set === '[]' ? '' : new RegExp(`${set}+$`, 'u')
  return (typeof text === 'string' ? text : '').replace(from, '').replace(to, '')
}

const extreme = (better: (a: number, b: number) => boolean) => (values: unknown): unknown =>
  Array.isArray(values) && values.length > 0 ? (values as number[]).reduce((best, value) => (better(value, best) ? value : best)) : undefined

/** What the programs call where @huggingface/jinja 0.5.11 differs from Jinja: strip with characters, trim of nothing, min and max. */
export const templateFunctions: Readonly<Record<string, unknown>> = {
  __strip: strip('both'), __lstrip: strip('left'), __rstrip: strip('right'), __trim: strip('both'),
  __min: extreme((a, b) => a < b), __max: extreme((a, b) => a > b),
}

/** A template ready to run with `templateFunctions`. */
export const parseTemplate = (source: string): Program => walk(parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }))) as Program
