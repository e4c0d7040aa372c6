import { whole, type Command, type Storage, type Tensor } from '../graph/graph.ts'
import { planMemory } from '../graph/plan.ts'
import { parameterTensor, type ParameterGroup, type ParameterLayout } from '../patch/parameters.ts'
import type { CompiledPlan, Runtime } from '../runtime/runtime.ts'

export interface AdamWOptions {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/** Scalars of one optimizer step, as the adamw command takes them. */
const groups: readonly ParameterGroup[] = ['default', 'embedding']
const scalarCount = 3 + groups.length

function scalarTensors(): { norm: Tensor; scalars: Tensor; bytes: number } {
  const storage = (name: string, offset: number, cols: number): Storage => ({ name, arena: 'io', offset, dtype: 'f64', rows: 1, cols, rule: 'fixed', keep: 'residual', layer: -1 })
  return { norm: whole(storage('gradientNorm', 0, 1)), scalars: whole(storage('scalars', 256, scalarCount)), bytes: 256 + scalarCount * 8 }
}

/**
 * AdamW with decoupled decay over the flat parameter arena, and the clip by global norm before it. Two commands lists of one plan:
 * the norm of all gradients, then the update of every stretch of parameters followed by zeroing the gradients.
 */
export class Optimizer {
  private readonly runtime: Runtime
  private readonly compiled: CompiledPlan
  private readonly options: AdamWOptions

  constructor(runtime: Runtime, layout: ParameterLayout, options: AdamWOptions) {
    this.runtime = runtime
    this.options = options
    const bytes = layout.elements * 4
    for (const arena of ['moment1', 'moment2', 'grads'] as const) runtime.reserve(arena, bytes)
    const { norm, scalars, bytes: ioBytes } = scalarTensors()
    runtime.reserve('io', ioBytes)
    const flat = (arena: 'params' | 'grads' | 'moment1' | 'moment2', offset: number, elements: number) => parameterTensor(arena, arena, offset, 1, elements)
    const commands: Command[] = [{ name: 'sumSquares', tensors: [norm, flat('grads', 0, layout.elements)], ints: [0, 0], floats: [] }]
    for (const { group, decay, offset, elements } of layout.ranges) {
      commands.push({
        name: 'adamw',
        tensors: [flat('params', offset, elements), flat('moment1', offset, elements), flat('moment2', offset, elements), flat('grads', offset, elements), scalars],
        ints: [groups.indexOf(group)],
        floats: [options.beta1, options.beta2, options.eps, decay ? options.weightDecay : 0],
      })
    }
    commands.push({ name: 'fill', tensors: [flat('grads', 0, layout.elements)], ints: [], floats: [0] })
    this.compiled = runtime.compile(planMemory(commands))
  }

  /** √Σ g² over all parameters. */
  async gradientNorm(): Promise<number> {
    await this.compiled.run(undefined, 0, 1)
    return Math.sqrt(new Float64Array(this.runtime.read('io', 0, 8))[0]!)
  }

  /**
   * One update; `step` counts from 1. `maxNorm` 0: no clipping; otherwise gradients are scaled by min(1, maxNorm/(norm + 1e-6)),
   * as torch.nn.utils.clip_grad_norm_ does. Gradients are zero afterwards.
   */
  async update(step: number, norm: number, maxNorm: number, rates: Readonly<Record<ParameterGroup, number>>): Promise<void> {
    const scale = maxNorm > 0 ? Math.min(1, maxNorm / (norm + 1e-6)) : 1
    const { beta1, beta2 } = this.options
    this.runtime.write('io', 256, Float64Array.of(scale, 1 - beta1 ** step, 1 - beta2 ** step, ...groups.map((group) => rates[group])))
    await this.compiled.run(undefined, 1)
  }
}
