import { UnslothError } from '#shared/errors.ts'
import type { MemoryPart } from '#shared/protocol.ts'
import { formatBytes } from '#shared/units.ts'
import { recomputeLevels, type Recompute } from '../graph/backward.ts'
import type { Capacity } from '../graph/graph.ts'
import { scoringPlan, trainingPlan } from '../model/stepGraph.ts'
import type { Place } from '../native.ts'
import { evaluatedWeights, trainedWeights, type PatchedModel } from '../runtime/patchedModel.ts'
import { nothingUnpacked, unpackWeights, type UnpackedWeights } from '../runtime/unpackedWeights.ts'
import { plannedMemory, type MemoryOptions, type MemoryUsers, type PlannedMemory } from './memoryParts.ts'

export type Checkpointing = 'auto' | 'none' | 'full' | 'offload'

export interface TrainingPlanOptions extends MemoryOptions {
  readonly checkpointing: Checkpointing
  /** Tokens of the longest sample (of the longest row, when packing). */
  readonly longestSample: number
  /** Tokens of the largest optimizer step. */
  readonly longestStep: number
  /** Packed sequences of one optimizer step, at most. */
  readonly sequences: number
  readonly evaluates: boolean
  /** Moments may go to memory of the system, when the plan does not fit otherwise. */
  readonly paged?: boolean
  /** Alpha of NEFTune; default 0, none. */
  readonly neftune?: number
  /** Default: with activations in fp16. */
  readonly lossScaling?: boolean
  /** Bytes of the device that the whole plan may take; a plan that does not fit at any setting is an error. */
  readonly availableBytes: number
  /** What the user lets it take of that; default all. */
  readonly maxBytes?: number
  /** Bytes of the system's memory that may be taken beside a GPU; default as many as it wants. */
  readonly availableHostBytes?: number
}

/** Every plan of a run with its exact memory, known before a byte is taken. */
export interface TrainingPlan extends PlannedMemory, MemoryUsers {
  /** What the backward pass recomputes in each layer; `mixed`: not the same in all. */
  readonly recompute: Recompute | 'mixed'
  /** What was recomputed and why, in one line. */
  readonly summary: string
}

/**
 * Tokens of a micro-step at most, the best first. A processor gains nothing from more: matrix products run at full speed from a few
 * hundred rows on, and activations grow with every row. A GPU wants a whole optimizer step at once, up to where its products are at full
 * speed, but a smaller micro-step costs less than to recompute. Plans run on as many rows as there are, so that none wastes anything.
 */
const microStepTokens = { cpu: [2048], cuda: [16_384, 8192, 4096, 2048] } as const

/** How a plan spends or saves memory. */
interface Choice {
  readonly capacity: Capacity
  /**
   * What layers recompute: all of them level ⌊step/layers⌋ of `recomputeLevels`, the first `step mod layers` one more. The first layers'
   * values would wait longest, and the last ones' backward pass runs while memory is fullest.
   */
  readonly step: number
  /** How many of what the layers start from wait in memory of the host. */
  readonly offload: number
  readonly moments: Place
  readonly unpacked: UnpackedWeights
}

interface Planned {
  readonly plan: TrainingPlan
  readonly choice: Choice
}

const deepest = (layers: number): number => (recomputeLevels.length - 1) * layers

const recomputeAt =
  (step: number, layers: number) =>
  (layer: number): Recompute =>
    recomputeLevels[Math.floor(step / layers) + (layer < step % layers ? 1 : 0)]!

/** Tokens of a sample from which on it costs more to attend again than to bring what was attended back from the host. */
const longAttention = 16_384

function capacities(patched: PatchedModel, { longestSample, longestStep, sequences }: TrainingPlanOptions): Capacity[] {
  const sizes = new Set(microStepTokens[patched.target.kind].map((most) => Math.max(longestSample, Math.min(longestStep, most))))
  return [...sizes].map((tokens) => ({ tokens, labelled: tokens, sequences: Math.min(sequences, tokens) }))
}

/**
 * Chooses the size of micro-steps, what is recomputed and what is offloaded. The size is the largest that an optimizer step can fill, up
 * to what suits the device, and never below the longest sample; smaller when that saves recomputing. `auto` then recomputes as little as
 * makes it fit, and where that is not enough, offloads as little as makes it fit. A processor has nowhere to offload to. Where memory is
 * plenty, quantised weights are kept unpacked, too, as far as half of it stays free.
 */
export function planTraining(patched: PatchedModel, options: TrainingPlanOptions): TrainingPlan {
  const { plan, choice } = leastThatFits(patched, options)
  const room = limit(options) / 2 - plan.totalBytes
  if (options.checkpointing === 'full' || options.checkpointing === 'offload' || !Number.isFinite(room)) return plan
  const unpacked = unpackWeights(patched, room)
  return unpacked.bytes === 0 ? plan : build(patched, { ...choice, unpacked }, options).plan
}

function leastThatFits(patched: PatchedModel, options: TrainingPlanOptions): Planned {
  if (options.paged !== true || patched.target.kind === 'cpu') return choose(patched, options, 'device')
  try {
    return choose(patched, options, 'device')
  } catch (error) {
    if (!UnslothError.is(error, 'MEMORY')) throw error
    return choose(patched, options, 'host')
  }
}

const limit = ({ availableBytes, maxBytes = Infinity }: TrainingPlanOptions): number => Math.min(availableBytes, maxBytes)

function choose(patched: PatchedModel, options: TrainingPlanOptions, moments: Place): Planned {
  const { checkpointing, longestSample } = options
  const sizes = capacities(patched, options)
  const { layers } = patched.model.spec
  const [whole, everything] = [deepest(layers), patched.target.kind === 'cuda' ? Infinity : 0]
  const fits = ({ plan: { totalBytes, hostBytes } }: Planned): boolean =>
    totalBytes <= limit(options) && hostBytes <= (options.availableHostBytes ?? Infinity)
  const at = (step: number, offload = 0, capacity = sizes.at(-1)!): Planned =>
    build(patched, { capacity, step, offload, moments, unpacked: nothingUnpacked }, options)
  const everywhere: Readonly<Record<Checkpointing, readonly [number, number]>> = {
    auto: [0, 0],
    none: [0, 0],
    full: [whole, 0],
    offload: [whole, everything],
  }
  let least: Planned | undefined
  for (const capacity of sizes) {
    least = at(...everywhere[checkpointing], capacity)
    if (fits(least)) return least
  }
  if (checkpointing === 'auto') {
    const steps = (from: number, to: number): Way => Array.from({ length: to - from + 1 }, (_, step) => () => at(from + step))
    const offloading = (step: number): Way =>
      everything === 0 ? [] : Array.from({ length: at(step).plan.training.offloadable }, (_, count) => () => at(step, count + 1))
    const projections = whole - layers
    // Where every layer recomputes, what the last one needs meets the loss at its fullest: one less can take less.
    const ways = [
      steps(0, projections),
      ...(longestSample >= longAttention ? [offloading(projections)] : []),
      steps(projections, whole - 1),
      steps(whole, whole),
      offloading(whole),
    ]
    for (const way of ways) {
      const found = firstThat(fits, way)
      if (found !== undefined) return found
    }
    least = ways
      .flatMap((way) => way.slice(-1))
      .map((last) => last())
      .reduce((a, b) => (a.plan.totalBytes <= b.plan.totalBytes ? a : b))
  }
  throw tooLarge(least!.plan, options)
}

/** Plans to be made, each taking less than those before. */
type Way = readonly (() => Planned)[]

/** The first that fits; undefined when the last does not. */
function firstThat(fits: (planned: Planned) => boolean, way: Way): Planned | undefined {
  const last = way.at(-1)
  if (last === undefined) return undefined
  let found = last()
  if (!fits(found)) return undefined
  let [low, high] = [-1, way.length - 1]
  while (high - low > 1) {
    const middle = (low + high) >> 1
    const planned = way[middle]!()
    if (fits(planned)) [found, high] = [planned, middle]
    else low = middle
  }
  return found
}

const largestOf = (parts: readonly MemoryPart[], where: MemoryPart['place']): MemoryPart =>
  parts.filter(({ place }) => place === where).reduce((a, b) => (a.bytes >= b.bytes ? a : b))

const isCapped = ({ availableBytes, maxBytes = Infinity }: TrainingPlanOptions): boolean => maxBytes < availableBytes

function tooLarge({ parts, totalBytes, hostBytes }: TrainingPlan, options: TrainingPlanOptions): UnslothError {
  if (totalBytes <= limit(options)) {
    const { name, bytes } = largestOf(parts, 'host')
    const message = `This run keeps ${formatBytes(hostBytes)} in the memory of the host, but only ${formatBytes(options.availableHostBytes ?? Infinity)} are free there; the largest part is ${name} with ${formatBytes(bytes)}.`
    return new UnslothError('MEMORY', message, {
      hint: hostHints[name] ?? 'Set training.offload_embedding and training.offload_lm_head to false, or end other programs.',
    })
  }
  const { name, bytes } = largestOf(parts, undefined)
  const room = isCapped(options)
    ? `training.max_memory allows only ${formatBytes(limit(options))}`
    : `only ${formatBytes(options.availableBytes)} are free`
  return new UnslothError(
    'MEMORY',
    `This run needs ${formatBytes(totalBytes)}, but ${room}; the largest part is ${name} with ${formatBytes(bytes)}.`,
    {
      hint: `${isCapped(options) ? 'Raise training.max_memory. ' : ''}${options.checkpointing === 'none' ? 'Set training.gradient_checkpointing: auto.' : 'Lower training.max_seq_length or lora.lora_r, or choose a smaller model.'}`,
    },
  )
}

/** What to change when a part of the host's memory is too large. */
const hostHints: Readonly<Record<string, string>> = {
  optimizer: 'Set training.optim: adamw_8bit, or sgd, which has no moments.',
  'offloaded activations': 'Set training.gradient_checkpointing: full, or lower training.max_seq_length.',
}

function build(patched: PatchedModel, choice: Choice, options: TrainingPlanOptions): Planned {
  const { capacity, step, offload, moments, unpacked } = choice
  const {
    target,
    model: { spec },
  } = patched
  const common = { spec, capacity, target, unpacked: unpacked.tensors }
  const dropout = patched.modules.some((module) => module.dropout > 0)
  const training = trainingPlan({
    ...common,
    weights: trainedWeights(patched),
    dropout,
    neftune: options.neftune ?? 0,
    recompute: recomputeAt(step, spec.layers),
    offload,
    lossScaling: options.lossScaling,
  })
  const scoring = options.evaluates ? scoringPlan({ ...common, weights: evaluatedWeights(patched) }) : undefined
  const users = { training, scoring, unpacked, moments }
  const memory = plannedMemory(patched, users, options)
  const copies = unpacked.bytes === 0 ? '' : `${formatBytes(unpacked.bytes)} of weights unpacked, `
  const summary = `${described(step, spec.layers)}, ${copies}micro-steps of up to ${capacity.tokens} tokens, ${used(memory, options)}`
  return { choice, plan: { ...users, ...memory, recompute: uniform(step, spec.layers), summary } }
}

/** "18.2 GB of 20.0 GB (max_memory), 3.1 GB on the host (optimizer)" */
function used({ totalBytes, parts, hostBytes }: PlannedMemory, options: TrainingPlanOptions): string {
  const names = parts.filter(({ place }) => place === 'host').map(({ name }) => name)
  const host = hostBytes === 0 ? '' : `, ${formatBytes(hostBytes)} on the host (${names.join(', ')})`
  return `${formatBytes(totalBytes)} of ${formatBytes(limit(options))}${isCapped(options) ? ' (max_memory)' : ''}${host}`
}

/** What all layers recompute, or `mixed`. */
const uniform = (step: number, layers: number): TrainingPlan['recompute'] =>
  step % layers === 0 ? recomputeAt(step, layers)(0) : 'mixed'

function described(step: number, layers: number): string {
  const [level, more] = [Math.floor(step / layers), step % layers]
  const of = (name: Recompute, count: string): string =>
    ({ none: count, mlp: `the MLP half of ${count}`, projections: `${count} but for attention`, layer: count })[name]
  if (more === 0) return `${of(recomputeLevels[level]!, `${level === 0 ? 0 : layers} of ${layers} layers`)} recomputed`
  const rest = level === 0 ? '' : `, and ${of(recomputeLevels[level]!, `${layers - more} more`)}`
  return `${of(recomputeLevels[level + 1]!, `${more} of ${layers} layers`)} recomputed${rest}`
}
