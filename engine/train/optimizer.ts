import type { Command } from '../graph/graph.ts'
import { planMemory } from '../graph/plan.ts'
import { stepScalar, stepScalarBytes, stepScalarOffset } from '../graph/stepScalars.ts'
import { parameterTensor, type ParameterGroup } from '../patch/parameters.ts'
import { shadowCast } from '../patch/shadow.ts'
import type { PatchedModel } from '../runtime/patchedModel.ts'
import type { CompiledPlan, Runtime } from '../runtime/runtime.ts'

export interface AdamWOptions {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
  /** 0: no clipping. */
  readonly maxGradNorm: number
}

/** Parameter groups in the order of their learning rates among the scalars. */
const groups: readonly ParameterGroup[] = ['default', 'embedding']

/** What an optimizer step came to. */
export interface UpdateResult {
  /** Σ weight·nll of the step's micro-steps, and the weighted balance loss where there is one. */
  readonly loss: number
  /** √Σ g² before clipping. */
  readonly gradientNorm: number
}

/**
 * AdamW with decoupled decay over the flat parameter arena, and the clip by global norm before it, decided on the device: a step is
 * enqueued whole, and what it came to is read afterwards. A loss or gradient that is not finite leaves parameters and moments as
 * they were.
 */
export class Optimizer {
  private readonly runtime: Runtime
  private readonly compiled: CompiledPlan
  private readonly options: AdamWOptions

  constructor(runtime: Runtime, patched: PatchedModel, options: AdamWOptions) {
    const { layout, target } = patched
    this.runtime = runtime
    this.options = options
    const bytes = layout.elements * 4
    for (const arena of ['moment1', 'moment2', 'grads'] as const) runtime.reserve(arena, bytes)
    runtime.reserve('scalars', stepScalarBytes)
    const flat = (arena: 'params' | 'grads' | 'moment1' | 'moment2', offset: number, elements: number) => parameterTensor(arena, arena, offset, 1, elements)
    const [loss, squares, scalars] = [stepScalar('loss'), stepScalar('squares'), stepScalar('scalars')]
    const commands: Command[] = [
      { name: 'fill', tensors: [flat('grads', 0, layout.elements)], ints: [], floats: [0] },
      { name: 'sumSquares', tensors: [squares, flat('grads', 0, layout.elements)], ints: [0, 0], floats: [] },
      { name: 'clipScale', tensors: [scalars, squares, loss], ints: [], floats: [options.maxGradNorm] },
    ]
    for (const { group, decay, offset, elements } of layout.ranges) {
      const [p, m, v, g] = (['params', 'moment1', 'moment2', 'grads'] as const).map((arena) => flat(arena, offset, elements))
      commands.push({
        name: 'adamw', tensors: [p, m, v, g, scalars], ints: [groups.indexOf(group)],
        floats: [options.beta1, options.beta2, options.eps, decay ? options.weightDecay : 0],
      })
    }
    commands.push(...shadowCast(layout, target.parameters))
    this.compiled = runtime.compile(planMemory(commands))
  }

  /** Gradients and loss of the step that follows start at zero. */
  async begin(): Promise<void> {
    this.runtime.write('scalars', stepScalarOffset('loss'), Float64Array.of(0))
    await this.compiled.run(undefined, 0, 1)
  }

  /**
   * One update; `step` counts from 1. Gradients are scaled by min(1, maxGradNorm/(norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
   * does, and stay as they are in their arena.
   */
  async update(step: number, rates: Readonly<Record<ParameterGroup, number>>): Promise<void> {
    const { beta1, beta2 } = this.options
    const scalars = Float64Array.of(1, 1 - beta1 ** step, 1 - beta2 ** step, ...groups.map((group) => rates[group]))
    this.runtime.write('scalars', stepScalarOffset('scalars'), scalars)
    await this.compiled.run(undefined, 1)
  }

  /** Waits for the last update. */
  result(): UpdateResult {
    const [loss, squares] = (['loss', 'squares'] as const).map((cell) => new Float64Array(this.runtime.read('scalars', stepScalarOffset(cell), 8))[0]!)
    return { loss: loss!, gradientNorm: Math.sqrt(squares!) }
  }
}
