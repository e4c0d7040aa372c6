import { elementCount, type SafetensorsDtype } from './safetensors.ts'

/** Summaries of many tensors: groups that differ only in layer or expert number, totals, parameter counts. */

export interface DescribedTensor {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  readonly bytes: number
}

export interface TensorGroup {
  /** The name with index ranges: model.layers.{0…31}.mlp.up_proj.weight. */
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  readonly count: number
  readonly bytes: number
}

const isIndex = (part: string): boolean => /^(0|[1-9]\d{0,8})$/.test(part)

function ranges(values: ReadonlySet<number>): string {
  const sorted = [...values].sort((a, b) => a - b)
  const parts: string[] = []
  for (let i = 0; i < sorted.length;) {
    let end = i
    while (sorted[end + 1] === sorted[end]! + 1) end++
    parts.push(end === i ? `${sorted[i]}` : `${sorted[i]}…${sorted[end]}`)
    i = end + 1
  }
  return sorted.length === 1 ? parts[0]! : `{${parts.join(',')}}`
}

/** Joins tensors of equal type and shape whose names differ only in numbers between dots; first occurrence gives the order. */
export function groupTensors(tensors: Iterable<DescribedTensor>): readonly TensorGroup[] {
  const groups = new Map<string, { first: DescribedTensor; count: number; bytes: number; indices: Set<number>[] }>()
  for (const tensor of tensors) {
    const parts = tensor.name.split('.')
    const key = JSON.stringify([parts.map((part) => (isIndex(part) ? null : part)), tensor.dtype, tensor.shape])
    const numbers = parts.filter(isIndex).map(Number)
    const group = groups.get(key)
    if (group === undefined) {
      const indices = numbers.map((number) => new Set([number]))
      groups.set(key, { first: tensor, count: 1, bytes: tensor.bytes, indices })
    } else {
      group.count++
      group.bytes += tensor.bytes
      numbers.forEach((number, place) => group.indices[place]!.add(number))
    }
  }
  return [...groups.values()].map(({ first, count, bytes, indices }) => {
    let place = 0
    const name = first.name
      .split('.')
      .map((part) => (isIndex(part) ? ranges(indices[place++]!) : part))
      .join('.')
    return { name, dtype: first.dtype, shape: first.shape, count, bytes }
  })
}

export interface TypeTotal {
  readonly type: string
  readonly tensors: number
  readonly elements: number
  readonly bytes: number
}

function sum(rows: Iterable<readonly [type: string, elements: number, bytes: number]>): readonly TypeTotal[] {
  const totals = new Map<string, { type: string; tensors: number; elements: number; bytes: number }>()
  for (const [type, elements, bytes] of rows) {
    const total = totals.get(type) ?? { type, tensors: 0, elements: 0, bytes: 0 }
    total.tensors++
    total.elements += elements
    total.bytes += bytes
    totals.set(type, total)
  }
  return [...totals.values()].sort((a, b) => b.bytes - a.bytes)
}

/** Tensors, elements and bytes by stored type, largest first. */
export const totalsByType = (tensors: Iterable<DescribedTensor>): readonly TypeTotal[] =>
  sum([...tensors].map(({ dtype, shape, bytes }) => [dtype, elementCount(shape), bytes] as const))

/** Scales and tables that bitsandbytes stores beside a weight. */
const quantisationPart = /\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+|SCB|weight_format)$/

/** Parameters by type: a packed 4-bit weight counts its real elements as NF4 or FP4; its scales are no parameters. */
export function parametersByType(tensors: ReadonlyMap<string, DescribedTensor>): readonly TypeTotal[] {
  const rows: [string, number, number][] = []
  for (const tensor of tensors.values()) {
    if (quantisationPart.test(tensor.name)) continue
    const packed = ['nf4', 'fp4'].find((type) => tensors.has(`${tensor.name}.quant_state.bitsandbytes__${type}`))
    const elements = elementCount(tensor.shape)
    if (packed === undefined) rows.push([tensor.dtype, elements, tensor.bytes])
    else rows.push([packed.toUpperCase(), 2 * tensor.bytes, tensor.bytes])
  }
  return sum(rows)
}
