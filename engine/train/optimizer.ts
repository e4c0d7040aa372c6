import type { Command } from '../graph/graph.ts'
import { planMemory } from '../graph/plan.ts'
import { stepScalar, stepScalarBytes, stepScalarOffset } from '../graph/stepScalars.ts'
import { parameterTensor, type ParameterRates } from '../patch/parameters.ts'
import { refreshCommands } from '../patch/shadow.ts'
import type { Place } from '../native.ts'
import type { PatchedModel } from '../runtime/patchedModel.ts'
import type { CompiledPlan, Runtime } from '../runtime/runtime.ts'
import { lossScaleDefaults, mostAhead, type LossScaleOptions, type LossScaleState } from './lossScale.ts'
import { biasScalars, parameterGroups, planOptimizer, type OptimizerSettings } from './optimizerState.ts'

export interface OptimizerOptions extends OptimizerSettings {
  /** 0: no clipping. */
  readonly maxGradNorm: number
  /** Gradients come scaled, from plans with `lossScaling`. Default: they do not. */
  readonly lossScale?: LossScaleOptions | undefined
}

/** What an optimizer step came to. */
export interface UpdateResult {
  /** Σ weight·nll of the step's micro-steps, and the weighted balance loss where there is one. */
  readonly loss: number
  /** √Σ g² before clipping, without the loss scale. */
  readonly gradientNorm: number
  /** With loss scaling. */
  readonly scaling?: ScaledStep
}

/** How a step fared with loss scaling. */
export interface ScaledStep extends LossScaleState {
  /** The scale that the step's gradients had; `scale` is that of the next one. */
  readonly used: number
}

/** Learning rates of the step that comes after so many updates; with loss scaling a skipped step is none. */
export type RatesAfter = (updates: number) => ParameterRates

/** c1, c2 and the learning rates: what `choices` has for each number of skipped steps. */
const choiceWidth = 2 + parameterGroups.length

/**
 * The optimizer over the flat parameter arena, and the clip by global norm before it, decided on the device: a step is
 * enqueued whole, and what it came to is read afterwards. A loss or gradient that is not finite leaves parameters and moments as
 * they were. With loss scaling that also halves the scale; neither the optimizer's count of steps nor the schedule of learning rates
 * moves on, as with torch.amp.GradScaler and transformers.
 */
export class Optimizer {
  private readonly runtime: Runtime
  private readonly compiled: CompiledPlan
  private readonly options: OptimizerOptions
  private updates = 0
  /** Skipped steps after so many of the updates. */
  private known = { updates: 0, skipped: 0 }

  /** `moments`: where those of the optimizer lie. */
  constructor(runtime: Runtime, patched: PatchedModel, options: OptimizerOptions, moments: Place = 'device') {
    const { layout, target } = patched
    this.runtime = runtime
    this.options = options
    const plan = planOptimizer(layout, options)
    runtime.reserve('grads', layout.elements * 4)
    if (plan.moment1 > 0) runtime.reserve('moment1', plan.moment1, moments)
    if (plan.moment2 > 0) runtime.reserve('moment2', plan.moment2, moments)
    runtime.reserve('scalars', stepScalarBytes)
    const grads = parameterTensor('grads', 'grads', 0, 1, layout.elements)
    const [loss, squares, scalars] = [stepScalar('loss'), stepScalar('squares'), stepScalar('scalars')]
    const { growthInterval, initial } = { ...lossScaleDefaults, ...options.lossScale }
    const clip: Command =
      options.lossScale === undefined
        ? { name: 'clipScale', tensors: [scalars, squares, loss], ints: [], floats: [options.maxGradNorm] }
        : {
            name: 'updateScale',
            tensors: [scalars, stepScalar('scaling'), squares, loss, stepScalar('choices')],
            ints: [growthInterval, choiceWidth],
            floats: [options.maxGradNorm],
          }
    const commands: Command[] = [
      { name: 'fill', tensors: [grads], ints: [], floats: [0] },
      { name: 'sumSquares', tensors: [squares, grads], ints: [0, 0], floats: [] },
      clip,
      ...plan.update,
    ]
    commands.push(...refreshCommands(layout, patched.arena.weights, target))
    this.compiled = runtime.compile(planMemory(commands))
    if (options.lossScale !== undefined) this.writeScaling({ scale: initial, goodSteps: 0, skipped: 0 })
  }

  /** Loss scaling goes on from here; nothing may be under way. */
  writeScaling({ scale, goodSteps, skipped }: LossScaleState): void {
    this.runtime.write('scalars', stepScalarOffset('scaling'), Float64Array.of(scale, goodSteps, skipped, scale))
    this.known = { updates: this.updates, skipped }
  }

  /** Undefined without loss scaling. */
  readScaling(): LossScaleState | undefined {
    if (this.options.lossScale === undefined) return undefined
    return scalingOf(new Float64Array(this.runtime.read('scalars', 0, stepScalarBytes)))
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
  async update(step: number, rates: RatesAfter): Promise<void> {
    const numbers = (updates: number): number[] => {
      const { default: rate, ...own } = rates(updates)
      return [
        ...biasScalars(this.options, updates + 1),
        ...parameterGroups.map((group) => (group === 'default' ? undefined : own[group]) ?? rate),
      ]
    }
    if (this.options.lossScale === undefined)
      this.runtime.write('scalars', stepScalarOffset('scalars'), Float64Array.of(1, ...numbers(step - 1)))
    else {
      if (this.updates - this.known.updates > mostAhead) await this.result()
      // Any of the steps under way may turn out to be skipped: the device takes the numbers that fit.
      const { skipped } = this.known
      const choices = Array.from({ length: mostAhead + 1 }, (_, more) => numbers(Math.max(0, step - 1 - skipped - more)))
      this.runtime.write('scalars', stepScalarOffset('choices'), Float64Array.of(skipped, ...choices.flat()))
    }
    ++this.updates
    await this.compiled.run(undefined, 1)
  }

  /** What the last update came to; the next step may be started before it resolves. */
  async result(): Promise<UpdateResult> {
    const { updates } = this
    const numbers = new Float64Array(await this.runtime.readLater('scalars', 0, stepScalarBytes))
    const [loss, squares] = (['loss', 'squares'] as const).map((cell) => numbers[stepScalarOffset(cell) / 8]!)
    if (this.options.lossScale === undefined) return { loss: loss!, gradientNorm: Math.sqrt(squares!) }
    const scaling = { ...scalingOf(numbers), used: numbers[stepScalarOffset('scaling') / 8 + 3]! }
    if (updates > this.known.updates) this.known = { updates, skipped: scaling.skipped }
    return { loss: loss!, gradientNorm: Math.sqrt(squares!) / scaling.used, scaling }
  }
}

/** Of all step scalars. */
function scalingOf(numbers: Float64Array): LossScaleState {
  const [scale, goodSteps, skipped] = numbers.subarray(stepScalarOffset('scaling') / 8)
  return { scale: scale!, goodSteps: goodSteps!, skipped: skipped! }
}
