import { UnslothError } from '#shared/errors.ts'
import type { ParameterRates } from '../patch/parameters.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { StepRunner, type PackedTokens } from '../runtime/stepRunner.ts'
import { firstNonFinite } from './nonFinite.ts'
import type { LossScaleOptions, LossScaleState } from './lossScale.ts'
import { Optimizer, type OptimizerOptions, type RatesAfter, type UpdateResult } from './optimizer.ts'
import type { OptimizerKind } from './optimizerState.ts'
import type { TrainingPlan } from './trainingPlan.ts'

/** Packed tokens with what the loss needs; the weights of all micro-steps of one optimizer step add up to 1. */
export type LossBatch = PackedTokens & { readonly labels: Int32Array; readonly weights: Float32Array }

export interface TrainerOptions extends Omit<OptimizerOptions, 'lossScale'> {
  readonly seed: number
  /** For plans with loss scaling. */
  readonly lossScale?: LossScaleOptions
}

export interface StepOutcome {
  /** What is minimised, before the update: mean negative log-likelihood of the step's labelled tokens, plus the routers' balance loss where the model trains with it. */
  readonly loss: number
  /** Norm of the gradient before clipping. */
  readonly gradientNorm: number
  readonly tokens: number
  readonly labelled: number
  /** Updates before this step, which its learning rate goes by: all steps but those that were skipped. */
  readonly updates: number
  /** With loss scaling. */
  readonly scaling?: {
    /** The scale that the gradient was computed with. */
    readonly scale: number
    /** The next step's: half as much after a skipped one. */
    readonly next: number
    /** The gradient was not finite at that scale: nothing was updated. */
    readonly skipped: boolean
  }
}

/** Forward, backward and update of optimizer steps on a loaded model. Knows neither files nor schedules. */
export class Trainer {
  readonly model: LoadedModel
  private readonly options: TrainerOptions
  private readonly training: StepRunner
  private readonly scoring: StepRunner | undefined
  private readonly optimizer: Optimizer

  constructor(model: LoadedModel, plan: TrainingPlan, options: TrainerOptions) {
    const { runtime, spec, patched } = model
    this.model = model
    this.options = options
    model.keepUnpacked(plan.unpacked)
    this.optimizer = new Optimizer(
      runtime,
      patched,
      { ...options, lossScale: plan.training.lossScaling ? (options.lossScale ?? {}) : undefined },
      plan.moments,
    )
    this.training = new StepRunner(runtime, spec, plan.training)
    this.scoring = plan.scoring === undefined ? undefined : new StepRunner(runtime, spec, plan.scoring)
  }

  /** One optimizer step, `index` from 0, on micro-steps that together are its samples; `rates` of every step, or by the updates before it. */
  async step(index: number, batches: readonly LossBatch[], rates: ParameterRates | RatesAfter): Promise<StepOutcome> {
    return (await this.start(index, batches, rates)).outcome
  }

  /**
   * Starts a step; a GPU works on while the next one is started. A step that is not finite changes nothing, but what was started
   * after it does. With loss scaling such a step is no failure unless the scale has come down to nothing.
   */
  async start(
    index: number,
    batches: readonly LossBatch[],
    rates: ParameterRates | RatesAfter,
  ): Promise<{ readonly outcome: Promise<StepOutcome> }> {
    await this.model.refreshShadow()
    await this.optimizer.begin()
    for (const batch of batches) await this.training.run(batch, { seed: this.options.seed, step: index })
    await this.optimizer.update(index + 1, typeof rates === 'function' ? rates : () => rates)
    return { outcome: this.outcome(index, batches, this.optimizer.result()) }
  }

  private async outcome(index: number, batches: readonly LossBatch[], result: Promise<UpdateResult>): Promise<StepOutcome> {
    const { loss, gradientNorm, scaling } = await result
    const finite = Number.isFinite(loss) && Number.isFinite(gradientNorm)
    if (!finite && (scaling === undefined || scaling.scale < 1)) {
      if (!Number.isFinite(loss)) throw await this.nonFinite(`The loss of step ${index + 1} is ${loss}`, batches, index)
      throw this.nonFiniteGradient(index)
    }
    const sum = (count: (batch: LossBatch) => number) => batches.reduce((total, batch) => total + count(batch), 0)
    const counts = { tokens: sum(({ ids }) => ids.length), labelled: sum(({ labels }) => labels.length) }
    if (scaling === undefined) return { loss, gradientNorm, ...counts, updates: index }
    const { used, scale: next, skipped } = scaling
    return {
      loss,
      gradientNorm,
      ...counts,
      updates: Math.max(0, index - skipped + (finite ? 0 : 1)),
      scaling: { scale: used, next, skipped: !finite },
    }
  }

  /** Mean negative log-likelihood over the labelled tokens of a whole set: Σ weight·nll of all batches. Never with a balance loss. */
  async evaluate(batches: Iterable<LossBatch>): Promise<number> {
    if (this.scoring === undefined) throw new UnslothError('INTERNAL', 'this run was planned without evaluation')
    await this.model.refreshShadow()
    let loss = 0
    for (const batch of batches) {
      await this.scoring.run(batch)
      loss += weightedSum(this.scoring.read('nll', batch.labels.length), batch.weights)
    }
    return loss
  }

  /** Seconds of each command of one micro-step, with the commands; gradients are spoilt. */
  async profile(batch: LossBatch): Promise<Float64Array> {
    return this.training.profile(batch, { seed: this.options.seed, step: 0 })
  }

  private async nonFinite(what: string, batches: readonly LossBatch[], step: number): Promise<UnslothError> {
    const random = { seed: this.options.seed, step }
    let tensor: string | undefined
    for (const batch of batches) tensor ??= await firstNonFinite(this.training, batch, random)
    return new UnslothError(
      'NON_FINITE',
      `${what}${tensor === undefined ? '' : `; the first tensor that is not finite is ${tensor}`}.`,
      { hint: `${this.widerNumbers}Lower training.learning_rate, or look at the samples of this step.` },
    )
  }

  private nonFiniteGradient(index: number): UnslothError {
    const bad = this.model.patched.layout.parameters.find(({ name }) =>
      this.model.readGradient(name).some((value) => !Number.isFinite(value)),
    )
    return new UnslothError(
      'NON_FINITE',
      `The gradient of step ${index + 1} is not finite${bad === undefined ? '' : ` in ${bad.name}`}.`,
      { hint: `${this.widerNumbers}Lower training.learning_rate, or set training.max_grad_norm.` },
    )
  }

  /** Where the loss was scaled in vain: the model itself is beyond the range. */
  private get widerNumbers(): string {
    return this.training.step.lossScaling
      ? 'Numbers of float16 end at 65504: set training.compute to bfloat16, or float32 where the GPU has no bfloat16. '
      : ''
  }

  get optimizerKind(): OptimizerKind {
    return this.options.kind ?? 'adamw'
  }

  /** Undefined without loss scaling. */
  readLossScale(): LossScaleState | undefined {
    return this.optimizer.readScaling()
  }

  writeLossScale(state: LossScaleState): void {
    this.optimizer.writeScaling(state)
  }

  /** The optimizer's moments as they stand in memory, by arena; those that it has. */
  readMoments(): Map<MomentArena, Uint8Array<ArrayBuffer>> {
    const { runtime } = this.model
    return new Map(
      momentArenas
        .filter((arena) => runtime.bytesOf(arena) > 0)
        .map((arena) => [arena, new Uint8Array(runtime.read(arena, 0, runtime.bytesOf(arena)))]),
    )
  }

  writeMoments(moments: ReadonlyMap<MomentArena, Uint8Array>): void {
    for (const [arena, bytes] of moments) this.model.runtime.write(arena, 0, bytes)
  }
}

export const momentArenas = ['moment1', 'moment2'] as const
export type MomentArena = (typeof momentArenas)[number]

function weightedSum(nll: Float32Array, weights: Float32Array): number {
  let sum = 0
  for (let i = 0; i < nll.length; ++i) sum += nll[i]! * weights[i]!
  return sum
}
