import { UnslothError } from '#shared/errors.ts'
import type { ParameterRates } from '../patch/parameters.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { StepRunner, type PackedTokens } from '../runtime/stepRunner.ts'
import { firstNonFinite } from './nonFinite.ts'
import { Optimizer, type UpdateResult, type OptimizerOptions } from './optimizer.ts'
import type { OptimizerKind } from './optimizerState.ts'
import type { TrainingPlan } from './trainingPlan.ts'

/** Packed tokens with what the loss needs; the weights of all micro-steps of one optimizer step add up to 1. */
export type LossBatch = PackedTokens & { readonly labels: Int32Array; readonly weights: Float32Array }

export interface TrainerOptions extends OptimizerOptions {
  readonly seed: number
}

export interface StepOutcome {
  /** What is minimised, before the update: mean negative log-likelihood of the step's labelled tokens, plus the routers' balance loss where the model trains with it. */
  readonly loss: number
  /** Norm of the gradient before clipping. */
  readonly gradientNorm: number
  readonly tokens: number
  readonly labelled: number
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
    this.optimizer = new Optimizer(runtime, patched, options)
    this.training = new StepRunner(runtime, spec, plan.training)
    this.scoring = plan.scoring === undefined ? undefined : new StepRunner(runtime, spec, plan.scoring)
  }

  /** One optimizer step, `index` from 0, on micro-steps that together are its samples. */
  async step(index: number, batches: readonly LossBatch[], rates: ParameterRates): Promise<StepOutcome> {
    return (await this.start(index, batches, rates)).outcome
  }

  /**
   * Starts a step; a GPU works on while the next one is started. A step that is not finite changes nothing, but what was started
   * after it does.
   */
  async start(index: number, batches: readonly LossBatch[], rates: ParameterRates): Promise<{ readonly outcome: Promise<StepOutcome> }> {
    await this.model.refreshShadow()
    await this.optimizer.begin()
    for (const batch of batches) await this.training.run(batch, { seed: this.options.seed, step: index })
    await this.optimizer.update(index + 1, rates)
    return { outcome: this.outcome(index, batches, this.optimizer.result()) }
  }

  private async outcome(index: number, batches: readonly LossBatch[], result: Promise<UpdateResult>): Promise<StepOutcome> {
    const { loss, gradientNorm } = await result
    if (!Number.isFinite(loss)) throw await this.nonFinite(`The loss of step ${index + 1} is ${loss}`, batches, index)
    if (!Number.isFinite(gradientNorm)) throw this.nonFiniteGradient(index)
    const sum = (count: (batch: LossBatch) => number) => batches.reduce((total, batch) => total + count(batch), 0)
    return { loss, gradientNorm, tokens: sum(({ ids }) => ids.length), labelled: sum(({ labels }) => labels.length) }
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
    return new UnslothError('NON_FINITE', `${what}${tensor === undefined ? '' : `; the first tensor that is not finite is ${tensor}`}.`, {
      hint: 'Lower training.learning_rate, or look at the samples of this step.',
    })
  }

  private nonFiniteGradient(index: number): UnslothError {
    const bad = this.model.patched.layout.parameters.find(({ name }) => this.model.readGradient(name).some((value) => !Number.isFinite(value)))
    return new UnslothError('NON_FINITE', `The gradient of step ${index + 1} is not finite${bad === undefined ? '' : ` in ${bad.name}`}.`, {
      hint: 'Lower training.learning_rate, or set training.max_grad_norm.',
    })
  }

  get optimizerKind(): OptimizerKind {
    return this.options.kind ?? 'adamw'
  }

  /** The optimizer's moments as they stand in memory, by arena; those that it has. */
  readMoments(): Map<MomentArena, Uint8Array<ArrayBuffer>> {
    const { runtime } = this.model
    return new Map(momentArenas.filter((arena) => runtime.bytesOf(arena) > 0).map((arena) => [arena, new Uint8Array(runtime.read(arena, 0, runtime.bytesOf(arena)))]))
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
