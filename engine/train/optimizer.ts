import type { Command } from '../graph/graph.ts'
import { planMemory } from '../graph/plan.ts'
import { stepScalar, stepScalarBytes, stepScalarOffset } from '../graph/stepScalars.ts'
import { parameterTensor, type ParameterRates } from '../patch/parameters.ts'
import { shadowCast } from '../patch/shadow.ts'
import type { PatchedModel } from '../runtime/patchedModel.ts'
import type { CompiledPlan, Runtime } from '../runtime/runtime.ts'
import { biasScalars, parameterGroups, planOptimizer, type OptimizerSettings } from './optimizerState.ts'

export interface OptimizerOptions extends OptimizerSettings {
  /** 0: no clipping. */
  readonly maxGradNorm: number
}

/** What an optimizer step came to. */
export interface UpdateResult {
  /** Σ weight·nll of the step's micro-steps, and the weighted balance loss where there is one. */
  readonly loss: number
  /** √Σ g² before clipping. */
  readonly gradientNorm: number
}

/**
 * The optimizer over the flat parameter arena, and the clip by global norm before it, decided on the device: a step is
 * enqueued whole, and what it came to is read afterwards. A loss or gradient that is not finite leaves parameters and moments as
 * they were.
 */
export class Optimizer {
  private readonly runtime: Runtime
  private readonly compiled: CompiledPlan
  private readonly options: OptimizerOptions

  constructor(runtime: Runtime, patched: PatchedModel, options: OptimizerOptions) {
    const { layout, target } = patched
    this.runtime = runtime
    this.options = options
    const plan = planOptimizer(layout, options)
    runtime.reserve('grads', layout.elements * 4)
    if (plan.moment1 > 0) runtime.reserve('moment1', plan.moment1)
    if (plan.moment2 > 0) runtime.reserve('moment2', plan.moment2)
    runtime.reserve('scalars', stepScalarBytes)
    const grads = parameterTensor('grads', 'grads', 0, 1, layout.elements)
    const [loss, squares, scalars] = [stepScalar('loss'), stepScalar('squares'), stepScalar('scalars')]
    const commands: Command[] = [
      { name: 'fill', tensors: [grads], ints: [], floats: [0] },
      { name: 'sumSquares', tensors: [squares, grads], ints: [0, 0], floats: [] },
      { name: 'clipScale', tensors: [scalars, squares, loss], ints: [], floats: [options.maxGradNorm] },
      ...plan.update,
    ]
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
  async update(step: number, rates: ParameterRates): Promise<void> {
    const scalars = Float64Array.of(1, ...biasScalars(this.options, step), ...parameterGroups.map((group) => rates[group] ?? rates.default))
    this.runtime.write('scalars', stepScalarOffset('scalars'), scalars)
    await this.compiled.run(undefined, 1)
  }

  /** What the last update came to; the next step may be started before it resolves. */
  async result(): Promise<UpdateResult> {
    const numbers = new Float64Array(await this.runtime.readLater('scalars', 0, stepScalarBytes))
    const [loss, squares] = (['loss', 'squares'] as const).map((cell) => numbers[stepScalarOffset(cell) / 8]!)
    return { loss: loss!, gradientNorm: Math.sqrt(squares!) }
  }
}
