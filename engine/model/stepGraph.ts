import { Backward, savePolicy, type Recompute } from '../graph/backward.ts'
import { bytesPerElement, type DType } from '../graph/dtype.ts'
import { Graph, whole, type Capacity, type Command, type RowRule, type Storage, type Tensor } from '../graph/graph.ts'
import { headLogits, headLoss, type HeadOptions } from '../graph/ops/head.ts'
import type { PrecisionCode, Target } from '../graph/target.ts'
import { stepScalar } from '../graph/stepScalars.ts'
import { paddedCapacity } from '../graph/padding.ts'
import { offloadActivations } from '../graph/offload.ts'
import { align, planMemory, type Plan } from '../graph/plan.ts'
import { tileRows } from '../graph/rowTiles.ts'
import type { ArchSpec, RopeSpec } from './archSpec.ts'
import { decoder, type DecoderInputs, type DecoderWeights } from './decoder.ts'

/** A named matrix of the io arena: how the host talks to a plan. Offset in bytes. */
export interface IoSlot {
  readonly offset: number
  readonly rows: number
  readonly cols: number
  readonly dtype: DType
}

/** One runnable computation over packed tokens. */
export interface StepPlan {
  readonly plan: Plan
  readonly capacity: Capacity
  readonly io: Readonly<Record<string, IoSlot>>
  readonly ioBytes: number
  /** Inputs come first in the io arena, so that one copy fills them; results follow. */
  readonly inputBytes: number
  /** Live rows are padded to a multiple of this. */
  readonly rowMultiple: number
  /** Commands of the forward pass; the rest is the backward pass. */
  readonly forwardCommands: number
  /** Activations that can wait in memory of the host between forward and backward pass. */
  readonly offloadable: number
  /** Whether gradients are those of the loss times the step's loss scale (stepScalars). */
  readonly lossScaling: boolean
}

/** How many frequency tables a micro-step may need: one, unless frequencies depend on a sequence's length. */
export const ropeTables = (rope: RopeSpec, sequences: number): number => (rope.table(1).key === '' ? 1 : sequences)

class IoBuilder {
  readonly slots: Record<string, IoSlot> = {}
  bytes = 0

  add(name: string, rule: RowRule, rows: number, cols: number, dtype: DType): Tensor {
    const offset = this.bytes
    this.slots[name] = { offset, rows, cols, dtype }
    this.bytes = align(offset + rows * cols * bytesPerElement(dtype))
    const storage: Storage = { name, arena: 'io', offset, dtype, rows, cols, rule, keep: 'residual', layer: -1 }
    return whole(storage)
  }
}

function inputs(
  io: IoBuilder,
  spec: ArchSpec,
  capacity: Capacity,
  options: { dropout: boolean; neftune?: number; cache?: CacheShape & { dtype: DType } },
): DecoderInputs {
  const { tokens, labelled, sequences } = capacity
  const ids = io.add('ids', 'tokens', tokens, 1, 'i32')
  const positions = io.add('positions', 'tokens', tokens, 1, 'i32')
  const rope = (kind: 'full' | 'window') => {
    const { half } = spec.rope[kind]
    const tables = ropeTables(spec.rope[kind], sequences)
    return {
      table: io.add(`ropeTable.${kind}`, 'tokens', tokens, 1, 'i32'),
      inverseFrequency: io.add(`ropeInverse.${kind}`, 'fixed', tables, half, 'f32'),
      factor: io.add(`ropeFactor.${kind}`, 'fixed', tables, 1, 'f32'),
    }
  }
  const full = rope('full')
  const window = spec.rope.window === spec.rope.full ? full : rope('window')
  const layout = {
    qStart: io.add('qStart', 'fixed', sequences + 1, 1, 'i32'),
    kvStart: io.add('kvStart', 'sequences', sequences, 1, 'i32'),
    kvLength: io.add('kvLength', 'sequences', sequences, 1, 'i32'),
  }
  const labelIndex = io.add('labelIndex', 'labelled', labelled, 1, 'i32')
  const base = { ids, positions, rope: { full, window }, layout, labelIndex }
  const { neftune = 0 } = options
  if (options.dropout || neftune > 0) {
    const randomness = {
      tokenKeys: io.add('tokenKeys', 'tokens', tokens, 2, 'i32'),
      random: io.add('random', 'fixed', 1, 2, 'i32'),
    }
    return {
      ...base,
      randomness,
      ...(neftune > 0 ? { noise: { scale: io.add('noiseScale', 'tokens', tokens, 1, 'f32'), alpha: neftune } } : {}),
    }
  }
  if (options.cache !== undefined) {
    const slots = io.add('slots', 'tokens', tokens, 1, 'i32')
    return { ...base, cache: { slots, layers: cacheLayers(spec, options.cache) } }
  }
  return base
}

/** A key/value cache of so many token rows, shared by all sequences. */
export interface CacheShape {
  readonly rows: number
}

export const cacheBytes = (spec: ArchSpec, { rows }: CacheShape, dtype: DType): number =>
  2 * spec.layers * align(rows * spec.kvHeads * spec.headDim * bytesPerElement(dtype))

function cacheLayers(spec: ArchSpec, { rows, dtype }: CacheShape & { dtype: DType }): { k: Tensor; v: Tensor }[] {
  const cols = spec.kvHeads * spec.headDim
  const each = align(rows * cols * bytesPerElement(dtype))
  const matrix = (name: string, index: number): Tensor =>
    whole({ name, arena: 'cache', offset: index * each, dtype, rows, cols, rule: 'fixed', keep: 'residual', layer: -1 })
  return Array.from({ length: spec.layers }, (_, layer) => ({
    k: matrix(`cache.${layer}.k`, 2 * layer),
    v: matrix(`cache.${layer}.v`, 2 * layer + 1),
  }))
}

const headOptions = (spec: ArchSpec, weights: DecoderWeights, precision: PrecisionCode): HeadOptions => ({
  weight: weights.weight('head'),
  ...(spec.headBias === true ? { bias: weights.weight('head.bias') } : {}),
  logitScale: spec.multiplier.logits,
  softcap: spec.finalSoftcap,
  precision,
})

const graphFor = (capacity: Capacity, { target, unpacked }: StepOptions): Graph =>
  new Graph(capacity, target.activation, target.unpacked, unpacked)

export interface StepOptions {
  readonly spec: ArchSpec
  readonly weights: DecoderWeights
  /** The largest live counts; the plan has room for their padding too. */
  readonly capacity: Capacity
  readonly target: Target
  /** Quantised matrices that stand in memory as plain numbers, too; see unpackedWeights.ts. */
  readonly unpacked?: ReadonlyMap<Storage, Tensor>
}

export interface TrainingOptions extends StepOptions {
  readonly dropout: boolean
  /** Alpha of NEFTune; 0 or absent: no noise. */
  readonly neftune?: number
  /** What each layer replays in the backward pass. */
  readonly recompute: (layer: number) => Recompute
  /** How many activations wait in memory of the host, at most `StepPlan.offloadable`; default none. */
  readonly offload?: number
  /** Multiply what the loss weighs by the loss scale among the step's scalars. Default: with activations in fp16. */
  readonly lossScaling?: boolean | undefined
}

/** Whether the routers' balance loss belongs to a model's training loss. */
export const hasBalanceLoss = (spec: ArchSpec): boolean => spec.moe !== undefined && spec.moe.balance > 0

/** `parts`: the forward commands, and those of the backward pass if there is one. */
function finish(
  capacity: Capacity,
  target: Pick<Target, 'rowMultiple' | 'tileRows'>,
  io: IoBuilder,
  inputBytes: number,
  parts: readonly (readonly Command[])[],
  offloadable = 0,
  lossScaling = false,
): StepPlan {
  const { commands, loops } = tileRows(parts, capacity.tokens, target.tileRows)
  const plan = planMemory(commands, loops)
  return {
    plan,
    capacity,
    rowMultiple: target.rowMultiple,
    io: io.slots,
    ioBytes: io.bytes,
    inputBytes,
    forwardCommands: plan.starts[parts[0]!.length]!,
    offloadable,
    lossScaling,
  }
}

/**
 * Forward, loss and backward of one micro-step: gradients accumulate in the gradient arena; `nll` of each labelled row comes out,
 * and `balanceLoss` where the model trains with one. Σ weight·nll and the weighted balance loss are added to the step's loss (stepScalars).
 * With loss scaling the gradients are those of the loss times the scale that the step's scalars hold when it runs.
 */
export function trainingPlan(options: TrainingOptions): StepPlan {
  const { spec, weights, target } = options
  const { precision, rowMultiple } = target
  const capacity = paddedCapacity(options.capacity, rowMultiple)
  const io = new IoBuilder()
  const graph = graphFor(capacity, options)
  const wired = inputs(io, spec, capacity, { dropout: options.dropout, neftune: options.neftune ?? 0 })
  const { labels, weights: rowWeights } = lossInputs(io, capacity)
  const balance = balanceInput(io, hasBalanceLoss(spec))
  const inputBytes = io.bytes
  const nll = io.add('nll', 'labelled', capacity.labelled, 1, 'f32')
  const balanced = balance()
  const balanceTerms =
    balanced.balance === undefined ? [] : [[balanced.balance.loss, balanced.balance.weight] as [Tensor, Tensor]]
  // Only what gradients are made from is scaled: the loss that is reported is not.
  const lossScaling = options.lossScaling ?? target.activation === 'f16'
  const scaling: Command[] = []
  const scaled = (name: string, rule: RowRule, x: Tensor): Tensor => {
    if (!lossScaling) return x
    const y = io.add(name, rule, x.storage.rows, 1, 'f32')
    scaling.push({ name: 'scaleLoss', tensors: [y, x, stepScalar('scaling')], ints: [], floats: [] })
    return y
  }
  const balanceInputs =
    balanced.balance === undefined
      ? {}
      : { balance: { ...balanced.balance, weight: scaled('scaledBalance', 'fixed', balanced.balance.weight) } }
  const lossWeights = scaled('scaledWeights', 'labelled', rowWeights)
  const h = decoder(graph, spec, weights, { ...wired, ...balanceInputs }, precision)
  headLoss(graph, h, { nll, labels, weights: lossWeights }, headOptions(spec, weights, precision), true)
  const forward = [...scaling, ...graph.forwardCommands()]
  const backward = new Backward(graph, savePolicy(options.recompute)).run()
  const losses: [Tensor, Tensor][] = [[nll, rowWeights], ...balanceTerms]
  const sums = losses.map(([value, weight]): Command => ({
    name: 'dot',
    tensors: [stepScalar('loss'), value, weight],
    ints: [1],
    floats: [],
  }))
  const idleForTwoLayers = (2 * (forward.length + backward.length)) / spec.layers
  const offloaded = offloadActivations(forward, backward, options.offload ?? 0, {
    leastCommands: Math.min(idleForTwoLayers, forward.length),
    leastCols: spec.hidden,
  })
  // Beside the other commands of labelled rows: those between are the same for any count of them.
  const summed = new Set(losses.map(([{ storage }]) => storage))
  const last = offloaded.backward.findLastIndex(({ tensors }) =>
    tensors.some((tensor) => tensor !== undefined && summed.has(tensor.storage)),
  )
  const withLoss = offloaded.backward.toSpliced(last + 1, 0, ...sums)
  return finish(capacity, target, io, inputBytes, [offloaded.forward, withLoss], offloaded.candidates, lossScaling)
}

/** The balance loss's factor among the inputs; the returned function adds the loss itself among the results. */
function balanceInput(io: IoBuilder, wanted: boolean): () => Pick<DecoderInputs, 'balance'> {
  if (!wanted) return () => ({})
  const weight = io.add('balanceWeight', 'fixed', 1, 1, 'f32')
  return () => ({ balance: { weight, loss: io.add('balanceLoss', 'fixed', 1, 1, 'f32') } })
}

function lossInputs(io: IoBuilder, { labelled }: Capacity) {
  return { labels: io.add('labels', 'labelled', labelled, 1, 'i32'), weights: io.add('weights', 'labelled', labelled, 1, 'f32') }
}

/**
 * Forward and `nll` of each labelled row: evaluation, and log-probabilities for preference losses; with `balance` also the routers'
 * `balanceLoss`.
 */
export function scoringPlan(options: StepOptions & { readonly balance?: boolean }): StepPlan {
  const { spec, weights, target } = options
  const { precision, rowMultiple } = target
  const capacity = paddedCapacity(options.capacity, rowMultiple)
  const io = new IoBuilder()
  const graph = graphFor(capacity, options)
  const wired = inputs(io, spec, capacity, { dropout: false })
  const loss = lossInputs(io, capacity)
  const balance = balanceInput(io, options.balance === true)
  const inputBytes = io.bytes
  const nll = io.add('nll', 'labelled', capacity.labelled, 1, 'f32')
  headLoss(
    graph,
    decoder(graph, spec, weights, { ...wired, ...balance() }, precision),
    { nll, ...loss },
    headOptions(spec, weights, precision),
    false,
  )
  return finish(capacity, target, io, inputBytes, [graph.forwardCommands()])
}

/** Forward and the logits of the rows in `labelIndex`; with a cache also earlier tokens are seen: prefill and decoding. */
export function logitsPlan(options: StepOptions & { readonly cache?: CacheShape }): StepPlan {
  const { spec, weights, target } = options
  const { precision } = target
  // Padding has no place in a cache, and a decoding step is small anyway.
  const rowMultiple = options.cache === undefined ? target.rowMultiple : 1
  const capacity = paddedCapacity(options.capacity, rowMultiple)
  const io = new IoBuilder()
  const graph = graphFor(capacity, options)
  const wired = inputs(io, spec, capacity, {
    dropout: false,
    ...(options.cache === undefined ? {} : { cache: { ...options.cache, dtype: target.activation } }),
  })
  const inputBytes = io.bytes
  const logits = io.add('logits', 'labelled', capacity.labelled, spec.vocabulary, 'f32')
  headLogits(graph, decoder(graph, spec, weights, wired, precision), logits, headOptions(spec, weights, precision))
  return finish(capacity, { ...target, rowMultiple }, io, inputBytes, [graph.forwardCommands()])
}
