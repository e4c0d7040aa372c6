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
  /** What the backward pass recomputes in each layer; `mixed`: not the same in all. */
  readonly recompute: Recompute | 'mixed'
  readonly parts: readonly MemoryPart[]
  readonly totalBytes: number
  /** What was recomputed and why, in one line. */
  readonly summary: string
}

/**
 * Tokens of a micro-step at most, the best first. A processor gains nothing from more: matrix products run at full speed from a few
 * hundred rows on, and activations grow with every row. A GPU wants a whole optimizer step at once, up to where its products are at full
 * speed, but a smaller micro-step costs less than to recompute. Plans run on as many rows as there are, so that none wastes anything.
 */
const microStepTokens = { cpu: [2048], cuda: [16_384, 8192, 4096, 2048] } as const

/** What each layer recomputes: the first `layer` layers all of it, the next ones up to `mlp` their MLP half, the rest nothing. */
interface Depth {
  readonly layer: number
  readonly mlp: number
}

/** Depths from nothing to everything: the MLP halves first, which free most for what they cost. */
const depths = (layers: number): Depth[] => Array.from({ length: 2 * layers + 1 }, (_, step) => ({ layer: Math.max(0, step - layers), mlp: Math.min(step, layers) }))

/** The first layers recompute: their values would wait longest, and the last ones' backward pass runs while memory is fullest. */
const recomputeAt = ({ layer, mlp }: Depth) => (index: number): Recompute => (index < layer ? 'layer' : index < mlp ? 'mlp' : 'none')

function capacities(patched: PatchedModel, { longestSample, longestStep, sequences }: TrainingPlanOptions): Capacity[] {
  const sizes = new Set(microStepTokens[patched.target.kind].map((most) => Math.max(longestSample, Math.min(longestStep, most))))
  return [...sizes].map((tokens) => ({ tokens, labelled: tokens, sequences: Math.min(sequences, tokens) }))
}

/**
 * Chooses the size of micro-steps and what is recomputed. The size is the largest that an optimizer step can fill, up to what suits the
 * device, and never below the longest sample; smaller when that saves recomputing. `auto` then recomputes in the fewest layers that
 * make it fit.
 */
export function planTraining(patched: PatchedModel, options: TrainingPlanOptions): TrainingPlan {
  const sizes = capacities(patched, options)
  const all = depths(patched.model.spec.layers)
  const fits = ({ totalBytes }: TrainingPlan): boolean => totalBytes <= options.availableBytes
  const everywhere = options.checkpointing === 'none' || options.checkpointing === 'auto' ? all[0]! : all.at(-1)!
  let least: TrainingPlan | undefined
  for (const capacity of sizes) {
    least = build(patched, capacity, everywhere, options)
    if (fits(least)) return least
  }
  if (options.checkpointing === 'auto') {
    const at = (step: number) => build(patched, sizes.at(-1)!, all[step]!, options)
    // Where every layer recomputes, what the last one needs meets the loss at its fullest: one less can take less.
    let [low, high] = [0, all.length - 2]
    least = at(high)
    if (fits(least)) {
      while (high - low > 1) {
        const middle = (low + high) >> 1
        const plan = at(middle)
        if (fits(plan)) [least, high] = [plan, middle]
        else low = middle
      }
      return least
    }
    const most = at(all.length - 1)
    if (fits(most)) return most
    if (most.totalBytes < least.totalBytes) least = most
  }
  throw tooLarge(least!, options)
}

function tooLarge({ parts, totalBytes }: TrainingPlan, { availableBytes, checkpointing }: TrainingPlanOptions): UnslothError {
  const largest = parts.reduce((a, b) => (a.bytes >= b.bytes ? a : b))
  const message = `This run needs ${formatBytes(totalBytes)}, but only ${formatBytes(availableBytes)} are free; the largest part is ${largest.name} with ${formatBytes(largest.bytes)}.`
  return new UnslothError('MEMORY', message, {
    hint: checkpointing === 'none' ? 'Set training.gradient_checkpointing: auto.' : 'Lower training.max_seq_length or lora.lora_r, or choose a smaller model.',
  })
}

function build(patched: PatchedModel, capacity: Capacity, depth: Depth, options: TrainingPlanOptions): TrainingPlan {
  const { spec } = patched.model
  const { target } = patched
  const dropout = patched.modules.some((module) => module.dropout > 0)
  const training = trainingPlan({ spec, weights: trainedWeights(patched), capacity, target, dropout, neftune: options.neftune ?? 0, recompute: recomputeAt(depth) })
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
  const size = `micro-steps of up to ${capacity.tokens} tokens, ${formatBytes(totalBytes)} of ${formatBytes(options.availableBytes)}`
  return { training, scoring, recompute: uniform(depth, layers), parts, totalBytes, summary: `${described(depth, layers)}, ${size}` }
}

/** What all layers recompute, or `mixed`. */
function uniform({ layer, mlp }: Depth, layers: number): TrainingPlan['recompute'] {
  if (layer === layers) return 'layer'
  if (layer === 0 && mlp === layers) return 'mlp'
  return layer === 0 && mlp === 0 ? 'none' : 'mixed'
}

function described({ layer, mlp }: Depth, layers: number): string {
  const whole = `${layer} of ${layers} layers recomputed`
  if (mlp === layer) return whole
  const half = `the MLP half of ${mlp - layer}`
  return layer === 0 ? `${half} of ${layers} layers recomputed` : `${whole}, and ${half} more`
}
