import type { Recompute } from '../graph/backward.ts'
import { stepScalarOffset } from '../graph/stepScalars.ts'
import { logitsPlan, scoringPlan, trainingPlan } from '../model/stepGraph.ts'
import type { DecoderWeights } from '../model/decoder.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { trainedWeights } from '../runtime/patchedModel.ts'
import { StepRunner, type PackedTokens } from '../runtime/stepRunner.ts'
import { lossScaleDefaults } from '../train/lossScale.ts'

/** A row of a golden batch: token ids, and the positions whose token is predicted (label of row p−1), each with a weight. */
export interface ScoredRow {
  readonly ids: Int32Array
  /** Weight of predicting token p from the tokens before it; 0 or absent: not scored. */
  readonly weight: (position: number) => number | undefined
  /** Width of the padded row that the reference ran: it decides frequencies that depend on length. */
  readonly width?: number
}

/** Rows as one packed micro-step that scores the chosen positions. */
export function packScored(rows: readonly ScoredRow[]): PackedTokens & { labels: Int32Array; weights: Float32Array } {
  const ids: number[] = []
  const positions: number[] = []
  const keys: number[] = []
  const qStart = [0]
  const labelIndex: number[] = []
  const labels: number[] = []
  const weights: number[] = []
  rows.forEach((row, sample) => {
    const base = ids.length
    row.ids.forEach((id, position) => {
      ids.push(id)
      positions.push(position)
      keys.push(sample, position)
      const weight = position === 0 ? undefined : row.weight(position)
      if (weight === undefined) return
      labelIndex.push(base + position - 1)
      labels.push(id)
      weights.push(weight)
    })
    qStart.push(ids.length)
  })
  const starts = Int32Array.from(qStart)
  return {
    ids: Int32Array.from(ids),
    positions: Int32Array.from(positions),
    tokenKeys: Int32Array.from(keys),
    qStart: starts,
    kvStart: starts.slice(0, -1),
    kvLength: Int32Array.from(rows, ({ ids: row }) => row.length),
    ropeLength: Int32Array.from(rows, ({ ids: row, width }) => width ?? row.length),
    labelIndex: Int32Array.from(labelIndex),
    labels: Int32Array.from(labels),
    weights: Float32Array.from(weights),
  }
}

const capacityOf = (packed: PackedTokens) => ({
  tokens: packed.ids.length,
  labelled: Math.max(1, packed.labelIndex.length),
  sequences: packed.kvLength.length,
})

/** Logits of every token of the rows, concatenated; `width` is the padded width of the reference's batch. */
export async function allLogits(
  model: LoadedModel,
  weights: DecoderWeights,
  rows: readonly Int32Array[],
  width?: number,
): Promise<Float32Array> {
  const packed = packScored(rows.map((ids) => ({ ids, weight: () => undefined, ...(width === undefined ? {} : { width }) })))
  const every = { ...packed, labelIndex: Int32Array.from(packed.ids.keys()) }
  const { spec, target, runtime } = model
  const runner = new StepRunner(runtime, spec, logitsPlan({ spec, weights, capacity: capacityOf(every), target }))
  await model.refreshShadow()
  await runner.run(every)
  return runner.read('logits', every.ids.length)
}

/** −log p of each scored position, in packed order. */
export async function scores(model: LoadedModel, weights: DecoderWeights, rows: readonly ScoredRow[]): Promise<Float32Array> {
  const packed = packScored(rows)
  const { spec, target, runtime } = model
  const runner = new StepRunner(runtime, spec, scoringPlan({ spec, weights, capacity: capacityOf(packed), target }))
  await model.refreshShadow()
  await runner.run(packed)
  return runner.read('nll', packed.labelIndex.length)
}

/** The routers' balance loss over all tokens of the rows, without its factor. */
export async function balance(model: LoadedModel, weights: DecoderWeights, rows: readonly ScoredRow[]): Promise<number> {
  const packed = packScored(rows)
  const { spec, target, runtime } = model
  const runner = new StepRunner(
    runtime,
    spec,
    scoringPlan({ spec, weights, capacity: capacityOf(packed), target, balance: true }),
  )
  await model.refreshShadow()
  await runner.run(packed)
  return runner.read('balanceLoss', 1)[0]!
}

export interface GradientOptions {
  readonly recompute?: Recompute
  /** Activations that wait in memory of the host. */
  readonly offload?: number
  /** Default: with activations in fp16. */
  readonly lossScaling?: boolean | undefined
  /** Seed and step of the dropout of adapters; without it nothing is dropped. */
  readonly dropout?: { readonly seed: number; readonly step: number }
}

/** Runs forward and backward with these weights on positions; gradients are left in the gradient arena, without a loss scale. Σ weight·nll. */
export async function gradients(
  model: LoadedModel,
  rows: readonly ScoredRow[],
  { recompute = 'none', offload = 0, lossScaling, dropout }: GradientOptions = {},
): Promise<number> {
  const { spec, target, runtime, trained, patched } = model
  const packed = packScored(rows)
  const { elements } = patched.layout
  runtime.reserve('grads', elements * 4)
  const step = trainingPlan({
    spec,
    weights: dropout === undefined ? trained : trainedWeights(patched),
    capacity: capacityOf(packed),
    target,
    dropout: dropout !== undefined,
    recompute: () => recompute,
    offload,
    lossScaling,
  })
  const runner = new StepRunner(runtime, spec, step)
  await model.refreshShadow()
  for (let scale = step.lossScaling ? lossScaleDefaults.initial : 1; ; scale /= 2) {
    runtime.write('grads', 0, new Float32Array(elements))
    runtime.write('scalars', stepScalarOffset('scaling'), Float64Array.of(scale))
    await runner.run(packed, dropout)
    if (scale <= 1) break
    const scaled = runtime.readFloats('grads', 0, elements)
    if (!scaled.every(Number.isFinite)) continue
    runtime.write(
      'grads',
      0,
      scaled.map((value) => value / scale),
    )
    break
  }
  return runner.read('nll', packed.labelIndex.length).reduce((sum, nll, i) => sum + nll * packed.weights[i]!, 0)
}
