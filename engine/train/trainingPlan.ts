import { UnslothError } from '#shared/errors.ts'
import type { MemoryPart } from '#shared/protocol.ts'
import { formatBytes } from '#shared/units.ts'
import type { Recompute } from '../graph/backward.ts'
import type { Capacity } from '../graph/graph.ts'
import { bytesPerElement } from '../graph/dtype.ts'
import { scratchBytes } from '../graph/scratchBytes.ts'
import { scoringPlan, trainingPlan, type StepPlan } from '../model/stepGraph.ts'
import { planOptimizer, type OptimizerKind } from './optimizerState.ts'
import { evaluatedWeights, trainedWeights, type PatchedModel } from '../runtime/patchedModel.ts'

export type Checkpointing = 'auto' | 'none' | 'full' | 'offload'

export interface TrainingPlanOptions {
  readonly checkpointing: Checkpointing
  /** Tokens of the longest sample (of the longest row, when packing). */
  readonly longestSample: number
  /** Tokens of the largest optimizer step. */
  readonly longestStep: number
  /** Packed sequences of one optimizer step, at most. */
  readonly sequences: number
  readonly evaluates: boolean
  /** Default AdamW with moments of 32 bits. */
  readonly optimizer?: OptimizerKind
  /** Alpha of NEFTune; default 0, none. */
  readonly neftune?: number
  /** Bytes that the whole plan may take; a plan that does not fit at any setting is an error. */
  readonly availableBytes: number
  /** Of the processor's kernels. */
  readonly threads: number
}

/** Every plan of a run with its exact memory, known before a byte is taken. */
export interface TrainingPlan {
  readonly training: StepPlan
  readonly scoring: StepPlan | undefined
  readonly recompute: Recompute
  readonly parts: readonly MemoryPart[]
  readonly totalBytes: number
  /** What was recomputed and why, in one line. */
  readonly summary: string
}

/**
 * Tokens of a micro-step at most. A processor gains nothing from more: matrix products run at full speed from a few hundred rows
 * on, and activations grow with every row. A GPU wants a whole optimizer step at once, up to where its products are at full speed.
 * Plans run on as many rows as there are, so a smaller micro-step wastes nothing.
 */
const microStepTokens = { cpu: 2048, cuda: 16_384 } as const

const levels: readonly Recompute[] = ['none', 'mlp', 'layer']

/**
 * Chooses the size of micro-steps and what is recomputed. The size is the largest that an optimizer step can fill, up to
 * `microStepTokens`, and never below the longest sample. `auto` recomputes the least that fits.
 */
export function planTraining(patched: PatchedModel, options: TrainingPlanOptions): TrainingPlan {
  const tokens = Math.max(options.longestSample, Math.min(options.longestStep, microStepTokens[patched.target.kind]))
  const capacity: Capacity = { tokens, labelled: tokens, sequences: Math.min(options.sequences, tokens) }
  const wanted: readonly Recompute[] = options.checkpointing === 'auto' ? levels : options.checkpointing === 'none' ? ['none'] : ['layer']
  const plans = wanted.map((recompute) => build(patched, capacity, recompute, options))
  const chosen = plans.find(({ totalBytes }) => totalBytes <= options.availableBytes)
  if (chosen !== undefined) return chosen
  const least = plans.at(-1)!
  const largest = least.parts.reduce((a, b) => (a.bytes >= b.bytes ? a : b))
  throw new UnslothError('MEMORY', `This run needs ${formatBytes(least.totalBytes)}, but only ${formatBytes(options.availableBytes)} are free; the largest part is ${largest.name} with ${formatBytes(largest.bytes)}.`, {
    hint: options.checkpointing === 'none' ? 'Set training.gradient_checkpointing: auto.' : 'Lower training.max_seq_length or lora.lora_r, or choose a smaller model.',
  })
}

function build(patched: PatchedModel, capacity: Capacity, recompute: Recompute, options: TrainingPlanOptions): TrainingPlan {
  const { spec } = patched.model
  const { target } = patched
  const dropout = patched.modules.some((module) => module.dropout > 0)
  const training = trainingPlan({ spec, weights: trainedWeights(patched), capacity, target, dropout, neftune: options.neftune ?? 0, recompute: () => recompute })
  const scoring = options.evaluates ? scoringPlan({ spec, weights: evaluatedWeights(patched), capacity, target }) : undefined
  const state = patched.layout.elements * 4
  const moments = planOptimizer(patched.layout, { kind: options.optimizer ?? 'adamw', beta1: 0, beta2: 0, eps: 0, weightDecay: 0 })
  const parts: MemoryPart[] = [
    { name: 'frozen weights', bytes: patched.arena.bytes },
    { name: patched.training.kind === 'full' ? 'trained weights' : 'adapters', bytes: state },
    { name: 'rounded copies', bytes: target.parameters === 'f32' ? 0 : patched.layout.elements * bytesPerElement(target.parameters) },
    { name: 'gradients', bytes: state },
    { name: 'optimizer', bytes: moments.moment1 + moments.moment2 },
    { name: 'activations', bytes: Math.max(training.plan.activationBytes, scoring?.plan.activationBytes ?? 0) },
    { name: 'batch', bytes: Math.max(training.ioBytes, scoring?.ioBytes ?? 0) },
    { name: 'kernel scratch', bytes: scratchBytes(target, training.plan.commands, options.threads) },
  ].filter(({ bytes }) => bytes > 0)
  const totalBytes = parts.reduce((sum, { bytes }) => sum + bytes, 0)
  const { layers } = spec
  const what = recompute === 'layer' ? `${layers} of ${layers} layers recomputed` : recompute === 'mlp' ? `the MLP half of ${layers} layers recomputed` : `0 of ${layers} layers recomputed`
  return { training, scoring, recompute, parts, totalBytes, summary: `${what}, micro-steps of up to ${capacity.tokens} tokens, ${formatBytes(totalBytes)} of ${formatBytes(options.availableBytes)}` }
}
