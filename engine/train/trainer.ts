import { UnslothError } from '#shared/errors.ts'
import type { ParameterGroup } from '../patch/parameters.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { StepRunner, type PackedTokens } from '../runtime/stepRunner.ts'
import { firstNonFinite } from './nonFinite.ts'
import { Optimizer, type AdamWOptions } from './optimizer.ts'
import type { TrainingPlan } from './trainingPlan.ts'

/** Packed tokens with what the loss needs; the weights of all micro-steps of one optimizer step add up to 1. */
export type LossBatch = PackedTokens & { readonly labels: Int32Array; readonly weights: Float32Array }

export interface TrainerOptions extends AdamWOptions {
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
  async step(index: number, batches: readonly LossBatch[], rates: Readonly<Record<ParameterGroup, number>>): Promise<StepOutcome> {
    const random = { seed: this.options.seed, step: index }
    await this.model.refreshShadow()
    await this.optimizer.begin()
    for (const batch of batches) await this.training.run(batch, random)
    await this.optimizer.update(index + 1, rates)
    const { loss, gradientNorm } = this.optimizer.result()
    if (!Number.isFinite(loss)) throw await this.nonFinite(`The loss of step ${index + 1} is ${loss}`, batches, random)
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

  private async nonFinite(what: string, batches: readonly LossBatch[], random: { seed: number; step: number }): Promise<UnslothError> {
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

  /** First and second moments of every parameter, in the layout of the parameter arena. */
  readMoments(): { moment1: Float32Array<ArrayBuffer>; moment2: Float32Array<ArrayBuffer> } {
    const { elements } = this.model.patched.layout
    return { moment1: this.model.runtime.readFloats('moment1', 0, elements), moment2: this.model.runtime.readFloats('moment2', 0, elements) }
  }

  writeMoments(moments: { moment1: Float32Array; moment2: Float32Array }): void {
    this.model.runtime.write('moment1', 0, moments.moment1)
    this.model.runtime.write('moment2', 0, moments.moment2)
  }
}

function weightedSum(nll: Float32Array, weights: Float32Array): number {
  let sum = 0
  for (let i = 0; i < nll.length; ++i) sum += nll[i]! * weights[i]!
  return sum
}
