import type { Arena, Command, Tensor } from '../graph/graph.ts'
import { whole } from '../graph/graph.ts'
import type { DType } from '../graph/dtype.ts'
import { align } from '../graph/plan.ts'
import { stepScalar } from '../graph/stepScalars.ts'
import { parameterTensor, type Parameter, type ParameterGroup, type ParameterLayout } from '../patch/parameters.ts'

/** How parameters follow their gradients; `8`: with moments in blocks of 8 bits. */
export type OptimizerKind = 'adamw' | 'adamw8' | 'lion' | 'lion8' | 'sgd' | 'adafactor'

export interface OptimizerSettings {
  /** Default AdamW with moments of 32 bits. */
  readonly kind?: OptimizerKind
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/** The commands of an update, and the bytes of its moments. */
export interface OptimizerPlan {
  readonly update: readonly Command[]
  readonly moment1: number
  readonly moment2: number
}

/** Parameter groups in the order of their learning rates among the scalars. */
export const parameterGroups: readonly ParameterGroup[] = ['default', 'embedding', 'loraB']

/** Elements that share a maximum of 8-bit moments, and the smallest tensor that has such; as in bitsandbytes. */
const stateBlock = 256
const least8 = 4096

/** Neighbouring parameters that one command updates. */
interface Segment {
  readonly group: ParameterGroup
  readonly decay: boolean
  readonly offset: number
  elements: number
  readonly narrow: boolean
}

const sizeOf = ({ rows, cols }: Parameter): number => rows * cols

/**
 * Blocks of 8 bits begin with each tensor, so that only tensors of whole blocks can share a command; small tensors and embeddings keep
 * moments of 32 bits.
 */
function segments(parameters: readonly Parameter[]): Segment[] {
  const all: Segment[] = []
  for (const parameter of [...parameters].sort((a, b) => a.offset - b.offset)) {
    const { group, decay, offset } = parameter
    const elements = sizeOf(parameter)
    const narrow = elements >= least8 && parameter.embedding !== true
    const last = all.at(-1)
    const joins =
      last?.group === group &&
      last.decay === decay &&
      last.narrow === narrow &&
      last.offset + last.elements === offset &&
      (!narrow || last.elements % stateBlock === 0)
    if (joins) last.elements += elements
    else all.push({ group, decay, offset, elements, narrow })
  }
  return all
}

/** Places moments one after another in an arena. */
class StateArena {
  bytes = 0
  private readonly arena: Arena

  constructor(arena: 'moment1' | 'moment2') {
    this.arena = arena
  }

  take(name: string, dtype: DType, elements: number): Tensor {
    const offset = this.bytes
    this.bytes = align(offset + elements * (dtype === 'u8' ? 1 : 4))
    return whole({ name, arena: this.arena, offset, dtype, rows: 1, cols: elements, rule: 'fixed', keep: 'residual', layer: -1 })
  }
}

/** The update of every parameter, in the order of the parameter arena. */
export function planOptimizer(
  { parameters, ranges, elements: total }: ParameterLayout,
  settings: OptimizerSettings,
): OptimizerPlan {
  const { kind = 'adamw', beta1, beta2, eps, weightDecay } = settings
  const [first, second] = [new StateArena('moment1'), new StateArena('moment2')]
  const scalars = stepScalar('scalars')
  const flat = (arena: Arena, offset: number, rows: number, cols: number) => parameterTensor(arena, arena, offset, rows, cols)
  const update: Command[] = []
  const command = (
    name: Command['name'],
    group: ParameterGroup,
    tensors: readonly (Tensor | undefined)[],
    floats: readonly number[],
  ) => update.push({ name, tensors, ints: [parameterGroups.indexOf(group)], floats })

  if (kind === 'adamw') {
    const [m, v] = [first.take('m', 'f32', total), second.take('v', 'f32', total)]
    const part = (tensor: Tensor, offset: number, elements: number): Tensor =>
      whole({ ...tensor.storage, offset: tensor.storage.offset + offset * 4, cols: elements })
    for (const { group, decay, offset, elements } of ranges)
      command(
        'adamw',
        group,
        [
          flat('params', offset, 1, elements),
          part(m, offset, elements),
          part(v, offset, elements),
          flat('grads', offset, 1, elements),
          scalars,
        ],
        [beta1, beta2, eps, decay ? weightDecay : 0],
      )
    return { update, moment1: first.bytes, moment2: second.bytes }
  }
  if (kind === 'adafactor') {
    for (const { group, decay, offset, rows, cols, shape } of parameters) {
      const factored = shape.length > 1
      const state = factored
        ? [first.take('row', 'f32', rows), second.take('column', 'f32', cols)]
        : [first.take('square', 'f32', rows * cols), undefined]
      command(
        'adafactor',
        group,
        [flat('params', offset, rows, cols), ...state, flat('grads', offset, rows, cols), scalars],
        [adafactorFloor, adafactorClip, decay ? weightDecay : 0],
      )
    }
    return { update, moment1: first.bytes, moment2: second.bytes }
  }
  for (const { group, decay, offset, elements, narrow } of kind === 'sgd'
    ? ranges.map((range) => ({ ...range, narrow: false }))
    : segments(parameters)) {
    const [p, grad] = [flat('params', offset, 1, elements), flat('grads', offset, 1, elements)]
    const lambda = decay ? weightDecay : 0
    const blocks = Math.ceil(elements / stateBlock)
    if (kind === 'sgd') command('sgd', group, [p, undefined, grad, scalars], [0, lambda])
    else if (kind === 'adamw8' && narrow) {
      const [m, v] = [first.take('m', 'u8', elements), second.take('v', 'u8', elements)]
      command(
        'adamw8',
        group,
        [p, m, v, first.take('absmaxM', 'f32', blocks), second.take('absmaxV', 'f32', blocks), grad, scalars],
        [beta1, beta2, eps, lambda],
      )
    } else if (kind === 'adamw8')
      command(
        'adamw',
        group,
        [p, first.take('m', 'f32', elements), second.take('v', 'f32', elements), grad, scalars],
        [beta1, beta2, eps, lambda],
      )
    else if (kind === 'lion8' && narrow) {
      command(
        'lion8',
        group,
        [p, first.take('m', 'u8', elements), first.take('absmax', 'f32', blocks), grad, scalars],
        [beta1, beta2, lambda],
      )
    } else command('lion', group, [p, first.take('m', 'f32', elements), grad, scalars], [beta1, beta2, lambda])
  }
  return { update, moment1: first.bytes, moment2: second.bytes }
}

/** transformers' Adafactor with a given learning rate: eps[0], clip_threshold, decay_rate. */
const adafactorFloor = 1e-30
const adafactorClip = 1
const adafactorDecay = -0.8

/** What the scalars hold behind the gradient's scale in step `step`, counted from 1. */
export function biasScalars({ kind, beta1, beta2 }: OptimizerSettings, step: number): readonly [number, number] {
  return kind === 'adafactor' ? [1 - step ** adafactorDecay, 0] : [1 - beta1 ** step, 1 - beta2 ** step]
}

/** What a recipe's `training.optim` means here; paged moments are those of the same optimizer. */
export const optimizerKinds: Readonly<Record<string, OptimizerKind>> = {
  adamw_torch: 'adamw',
  adamw_8bit: 'adamw8',
  paged_adamw_8bit: 'adamw8',
  paged_adamw_32bit: 'adamw',
  lion_32bit: 'lion',
  lion_8bit: 'lion8',
  paged_lion_32bit: 'lion',
  paged_lion_8bit: 'lion8',
  sgd: 'sgd',
  adafactor: 'adafactor',
}
