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
  /** Default: with activations in fp16. */
  readonly lossScaling?: boolean
  /** Bytes of the device that the whole plan may take; a plan that does not fit at any setting is an error. */
  readonly availableBytes: number
  /** Bytes of the system's memory that may be taken beside a GPU; default as many as it wants. */
  readonly availableHostBytes?: number
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
  /** Of the device. */
  readonly totalBytes: number
  /** Of the system beside a GPU. */
  readonly hostBytes: number
  /** What was recomputed and why, in one line. */
  readonly summary: string
}

/**
 * Tokens of a micro-step at most, the best first. A processor gains nothing from more: matrix products run at full speed from a few
 * hundred rows on, and activations grow with every row. A GPU wants a whole optimizer step at once, up to where its products are at full
 * speed, but a smaller micro-step costs less than to recompute. Plans run on as many rows as there are, so that none wastes anything.
 */
const microStepTokens = { cpu: [2048], cuda: [16_384, 8192, 4096, 2048] } as const

/**
 * What each layer recomputes: the first `layer` layers all of it, the next ones up to `mlp` their MLP half, the rest nothing; and how many
 * of what the layers start from wait in memory of the host.
 */
interface Depth {
  readonly layer: number
  readonly mlp: number
  readonly offload: number
}

/** Depths from nothing to everything: the MLP halves first, which free most for what they cost. */
const depths = (layers: number): Depth[] =>
  Array.from({ length: 2 * layers + 1 }, (_, step) => ({ layer: Math.max(0, step - layers), mlp: Math.min(step, layers), offload: 0 }))

/** The first layers recompute: their values would wait longest, and the last ones' backward pass runs while memory is fullest. */
const recomputeAt = ({ layer, mlp }: Pick<Depth, 'layer' | 'mlp'>) => (index: number): Recompute => (index < layer ? 'layer' : index < mlp ? 'mlp' : 'none')

function capacities(patched: PatchedModel, { longestSample, longestStep, sequences }: TrainingPlanOptions): Capacity[] {
  const sizes = new Set(microStepTokens[patched.target.kind].map((most) => Math.max(longestSample, Math.min(longestStep, most))))
  return [...sizes].map((tokens) => ({ tokens, labelled: tokens, sequences: Math.min(sequences, tokens) }))
}

/**
 * Chooses the size of micro-steps, what is recomputed and what is offloaded. The size is the largest that an optimizer step can fill, up
 * to what suits the device, and never below the longest sample; smaller when that saves recomputing. `auto` then recomputes in the
 * fewest layers that make it fit, and where all do, offloads as little as makes it fit. A processor has nowhere to offload to.
 */
export function planTraining(patched: PatchedModel, options: TrainingPlanOptions): TrainingPlan {
  const { checkpointing } = options
  const sizes = capacities(patched, options)
  const all = depths(patched.model.spec.layers)
  const everything: Depth = { ...all.at(-1)!, offload: patched.target.kind === 'cuda' ? Infinity : 0 }
  const everywhere = { auto: all[0]!, none: all[0]!, full: all.at(-1)!, offload: everything }[checkpointing]
  const fits = ({ totalBytes, hostBytes }: TrainingPlan): boolean =>
    totalBytes <= options.availableBytes && hostBytes <= (options.availableHostBytes ?? Infinity)
  let least: TrainingPlan | undefined
  for (const capacity of sizes) {
    least = build(patched, capacity, everywhere, options)
    if (fits(least)) return least
  }
  if (checkpointing === 'auto') {
    const at = (depth: Depth) => build(patched, sizes.at(-1)!, depth, options)
    // Where every layer recomputes, what the last one needs meets the loss at its fullest: one less can take less.
    const recomputed = firstThat(fits, all.slice(0, -1), at)
    if (recomputed !== undefined) return recomputed
    const full = at(all.at(-1)!)
    if (fits(full)) return full
    const counts = Array.from({ length: everything.offload === 0 ? 0 : full.training.offloadable }, (_, count) => ({ ...everything, offload: count + 1 }))
    const offloaded = firstThat(fits, counts, at)
    if (offloaded !== undefined) return offloaded
    least = [at(all.at(-2)!), full, ...counts.slice(-1).map(at)].reduce((a, b) => (a.totalBytes <= b.totalBytes ? a : b))
  }
  throw tooLarge(least!, options)
}

/** The plan of the first depth that fits, where each takes less than those before; undefined when the last does not. */
function firstThat(fits: (plan: TrainingPlan) => boolean, among: readonly Depth[], planAt: (depth: Depth) => TrainingPlan): TrainingPlan | undefined {
  const last = among.at(-1)
  if (last === undefined) return undefined
  let found = planAt(last)
  if (!fits(found)) return undefined
  let [low, high] = [-1, among.length - 1]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    const plan = planAt(among[middle]!)
    if (fits(plan)) [found, high] = [plan, middle]
    else low = middle
  }
  return found
}

function tooLarge({ parts, totalBytes, hostBytes }: TrainingPlan, { availableBytes, availableHostBytes = Infinity, checkpointing }: TrainingPlanOptions): UnslothError {
  if (totalBytes <= availableBytes)
    return new UnslothError('MEMORY', `This run keeps ${formatBytes(hostBytes)} in the memory of the host, but only ${formatBytes(availableHostBytes)} are free there.`, {
      hint: checkpointing === 'offload' ? 'Set training.gradient_checkpointing: full or auto, or lower training.max_seq_length.' : 'Lower training.max_seq_length, or end other programs.',
    })
  const largest = parts.filter(({ place }) => place === undefined).reduce((a, b) => (a.bytes >= b.bytes ? a : b))
  const message = `This run needs ${formatBytes(totalBytes)}, but only ${formatBytes(availableBytes)} are free; the largest part is ${largest.name} with ${formatBytes(largest.bytes)}.`
  return new UnslothError('MEMORY', message, {
    hint: checkpointing === 'none' ? 'Set training.gradient_checkpointing: auto.' : 'Lower training.max_seq_length or lora.lora_r, or choose a smaller model.',
  })
}

function build(patched: PatchedModel, capacity: Capacity, depth: Depth, options: TrainingPlanOptions): TrainingPlan {
  const { spec } = patched.model
  const { target } = patched
  const dropout = patched.modules.some((module) => module.dropout > 0)
  const training = trainingPlan({ spec, weights: trainedWeights(patched), capacity, target, dropout, neftune: options.neftune ?? 0, recompute: recomputeAt(depth), offload: depth.offload,
    lossScaling: options.lossScaling,
  })
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
    { name: 'offloaded activations', bytes: training.plan.offloadedBytes, place: 'host' as const },
  ].filter(({ bytes }) => bytes > 0)
  const bytesIn = (where: MemoryPart['place']) => parts.reduce((sum, { bytes, place }) => (place === where ? sum + bytes : sum), 0)
  const [totalBytes, hostBytes] = [bytesIn(undefined), bytesIn('host')]
  const { layers } = spec
  const host = hostBytes === 0 ? '' : `${Math.min(depth.offload, training.offloadable)} layer inputs in ${formatBytes(hostBytes)} of host memory, `
  const size = `${host}micro-steps of up to ${capacity.tokens} tokens, ${formatBytes(totalBytes)} of ${formatBytes(options.availableBytes)}`
  return { training, scoring, recompute: uniform(depth, layers), parts, totalBytes, hostBytes, summary: `${described(depth, layers)}, ${size}` }
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
