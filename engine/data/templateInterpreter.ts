import { Interpreter, type Environment } from '@huggingface/jinja'
import {
  isDict,
  isList,
  isSafe,
  isText,
  joinSafe,
  pythonEqual,
  pythonText,
  safeText,
  tuple,
  values,
  type RuntimeValue,
} from './pythonText.ts'

/** A node of a parsed template. */
export interface TemplateNode {
  readonly type: string
  readonly [key: string]: unknown
}

/** What a template may take before it is taken for one that never ends. */
export interface TemplateLimits {
  readonly milliseconds: number
  /** Characters of any one text. */
  readonly characters: number
}

const evaluationsBetweenLooks = 1024

/** The parts of the library's interpreter that are replaced; its types call them private. */
interface Internals {
  evaluate(node: TemplateNode | undefined, environment: Environment): RuntimeValue
  evaluateBlock(statements: readonly TemplateNode[], environment: Environment): RuntimeValue
  evaluateBinaryExpression(node: TemplateNode, environment: Environment): RuntimeValue
  evaluateMemberExpression(node: TemplateNode, environment: Environment): RuntimeValue
  evaluateArguments(args: readonly TemplateNode[], environment: Environment): [RuntimeValue[], Map<string, RuntimeValue>]
  applyFilter(operand: RuntimeValue, filter: TemplateNode, environment: Environment): RuntimeValue
}
const Base = Interpreter as unknown as new (environment: Environment) => Internals

/** Statements, whose value is no output, although it is None. */
const silent: ReadonlySet<string> = new Set(['Set', 'Macro', 'Comment', 'Break', 'Continue'])

type KeyedDict = RuntimeValue & { value: Map<string | number, RuntimeValue> }
const keyValue = (key: string | number): RuntimeValue =>
  typeof key === 'number' ? new values.Integer(key) : new values.Text(key)
const pair = (key: string | number, value: RuntimeValue): RuntimeValue => tuple([keyValue(key), value])
const byKey = ([a]: readonly [string | number, unknown], [b]: readonly [string | number, unknown]): number =>
  a < b ? -1 : a > b ? 1 : 0

/** A dictionary with numbers among its keys, which the library does not have. */
class NumberedDict extends (values.Dict as unknown as new (value: Map<string | number, RuntimeValue>) => KeyedDict) {
  items(): RuntimeValue {
    return new values.List([...this.value].map(([key, value]) => pair(key, value)))
  }

  keys(): RuntimeValue {
    return new values.List([...this.value.keys()].map(keyValue))
  }

  /** By key, as the filter `dictsort` does by default. */
  sorted(): RuntimeValue {
    return new values.List([...this.value].sort(byKey).map(([key, value]) => pair(key, value)))
  }
}

/**
 * Runs templates as Jinja runs them in transformers, where @huggingface/jinja 0.5.11 does otherwise: Python's text of values that
 * are printed or joined with `~`, equality by contents, numbers as keys of dictionaries, tuples to unpack, text marked `safe`.
 * What takes too long or grows too large ends with an error.
 */
export class TemplateInterpreter extends Base {
  private readonly limits: TemplateLimits
  private readonly since = performance.now()
  private evaluations = 0
  /** Whether there are dictionaries with numbers as keys: only then is every access looked at. */
  private madeNumbered = false

  constructor(environment: Environment, limits: TemplateLimits) {
    super(environment)
    this.limits = limits
  }

  override evaluate(node: TemplateNode | undefined, environment: Environment): RuntimeValue {
    this.checkTime()
    if (node?.type === 'Known') return node.known as RuntimeValue
    if (node?.type === 'TupleLiteral')
      return tuple((node.value as TemplateNode[]).map((item) => this.evaluate(item, environment)))
    if (node?.type === 'ObjectLiteral') return this.dict(node.value as ReadonlyMap<TemplateNode, TemplateNode>, environment)
    return super.evaluate(node, environment)
  }

  override evaluateBlock(statements: readonly TemplateNode[], environment: Environment): RuntimeValue {
    // A loop without a body evaluates nothing.
    this.checkTime()
    let text = ''
    for (const statement of statements) {
      const value = this.evaluate(statement, environment)
      if (isText(value)) text += value.value
      else if (!silent.has(statement.type)) text += pythonText(value)
      this.checkLength(text)
    }
    return new values.Text(text)
  }

  override evaluateBinaryExpression(node: TemplateNode, environment: Environment): RuntimeValue {
    const operator = (node.operator as { readonly value: string }).value
    if (operator === 'and' || operator === 'or') return super.evaluateBinaryExpression(node, environment)
    const left = this.evaluate(node.left as TemplateNode, environment)
    const right = this.evaluate(node.right as TemplateNode, environment)
    switch (operator) {
      case '==':
        return new values.Truth(pythonEqual(left, right))
      case '!=':
        return new values.Truth(!pythonEqual(left, right))
      case '~':
        return this.text(pythonText(left) + pythonText(right))
      case '+':
        if (isText(left) && isText(right))
          return isSafe(left) || isSafe(right) ? joinSafe(left, right) : this.text(left.value + right.value)
        if (isText(left) || isText(right))
          throw new Error(`text can only be joined with text by "+", not with ${kindOf(isText(left) ? right : left)}`)
        break
      case 'in':
      case 'not in': {
        const found = contains(right, left)
        if (found !== undefined) return new values.Truth(found === (operator === 'in'))
        break
      }
      case '%':
        // Python's remainder has the sign of the divisor.
        if (left.type === 'IntegerValue' && right.type === 'IntegerValue' && right.value !== 0) {
          const [a, b] = [left.value as number, right.value as number]
          return new values.Integer(((a % b) + b) % b)
        }
    }
    return super.evaluateBinaryExpression({ ...node, left: known(left), right: known(right) }, environment)
  }

  override evaluateMemberExpression(node: TemplateNode, environment: Environment): RuntimeValue {
    if (!this.madeNumbered) return super.evaluateMemberExpression(node, environment)
    const object = this.evaluate(node.object as TemplateNode, environment)
    const property = node.property as TemplateNode
    if (object instanceof NumberedDict && node.computed === true && property.type !== 'SliceExpression')
      return object.value.get(this.evaluate(property, environment).value as string | number) ?? new values.Undefined(undefined)
    return super.evaluateMemberExpression({ ...node, object: known(object) }, environment)
  }

  override applyFilter(operand: RuntimeValue, filter: TemplateNode, environment: Environment): RuntimeValue {
    const call = filter.type === 'CallExpression'
    const name = String(call ? (filter.callee as TemplateNode).value : filter.value)
    if (name === 'safe') return safeText(pythonText(operand))
    if (name === 'string') return isText(operand) ? operand : this.text(pythonText(operand))
    if (operand instanceof NumberedDict && name === 'dictsort' && !call) return operand.sorted()
    if (operand instanceof NumberedDict && name === 'items') return operand.items()
    if (name === 'list' && isDict(operand)) return new values.List([...operand.value.keys()].map(keyValue))
    if (name === 'list' && isText(operand))
      return new values.List(Array.from(operand.value, (character) => new values.Text(character)))
    if (name === 'join' && isList(operand)) {
      const [args, named] = call
        ? this.evaluateArguments(filter.args as TemplateNode[], environment)
        : [[], new Map<string, RuntimeValue>()]
      const separator = args[0] ?? named.get('d')
      if (args.length < 2 && !named.has('attribute'))
        return this.text(operand.value.map(pythonText).join(separator === undefined ? '' : pythonText(separator)))
    }
    if ((name === 'max' || name === 'min') && isList(operand) && !call) return extreme(operand.value, name)
    if (name === 'default' && !call) return operand.type === 'UndefinedValue' ? new values.Text('') : operand
    return super.applyFilter(operand, filter, environment)
  }

  private dict(entries: ReadonlyMap<TemplateNode, TemplateNode>, environment: Environment): RuntimeValue {
    const map = new Map<string | number, RuntimeValue>()
    let numbered = false
    for (const [key, value] of entries) {
      const made = this.evaluate(key, environment)
      if (!isText(made) && made.type !== 'IntegerValue')
        throw new Error(`a key of a dictionary is neither text nor a whole number: ${pythonText(made)}`)
      numbered ||= !isText(made)
      map.set(made.value as string | number, this.evaluate(value, environment))
    }
    this.madeNumbered ||= numbered
    return numbered ? new NumberedDict(map) : new values.Dict(map as Map<string, RuntimeValue>)
  }

  private text(text: string): RuntimeValue {
    this.checkLength(text)
    return new values.Text(text)
  }

  private checkTime(): void {
    if (++this.evaluations % evaluationsBetweenLooks === 0 && performance.now() - this.since > this.limits.milliseconds)
      throw new Error(`it ran for more than ${this.limits.milliseconds / 1000} seconds without coming to an end`)
  }

  private checkLength({ length }: string): void {
    if (length > this.limits.characters) throw new Error(`it makes a text of more than ${this.limits.characters} characters`)
  }
}

const kinds: Readonly<Record<string, string>> = {
  ObjectValue: 'a dictionary',
  ArrayValue: 'a list',
  IntegerValue: 'a number',
  FloatValue: 'a number',
  BooleanValue: 'true or false',
  NullValue: 'None',
  UndefinedValue: 'something that is not there',
}
const kindOf = ({ type }: RuntimeValue): string => kinds[type] ?? type

/** Python's `in`; undefined where the library knows best. */
function contains(container: RuntimeValue, item: RuntimeValue): boolean | undefined {
  if (isList(container)) return container.value.some((other) => pythonEqual(other, item))
  if (isDict(container) && (isText(item) || item.type === 'IntegerValue'))
    return container.value.has(item.value as string | number)
  if (isText(container) && isText(item)) return container.value.includes(item.value)
  return undefined
}

/** The largest or smallest of numbers or texts; nothing of nothing. */
const extreme = (items: readonly RuntimeValue[], which: 'max' | 'min'): RuntimeValue =>
  items.reduce<RuntimeValue | undefined>((best, item) => {
    if (best === undefined) return item
    const [a, b] = [item.value, best.value] as [number, number]
    return (which === 'max' ? a > b : a < b) ? item : best
  }, undefined) ?? new values.Undefined(undefined)

/** A node that stands for a value that was made already. */
const known = (value: RuntimeValue): TemplateNode => ({ type: 'Known', known: value })
