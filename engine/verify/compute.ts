import { join } from 'node:path'
import { openPeftAdapter } from '../io/peftAdapter.ts'
import { loraTraining, optionsOfAdapter } from '../patch/peftOptions.ts'
import { restoreParameters } from '../train/checkpoint.ts'
import { Generator } from '../generate/generator.ts'
import { greedy } from '../generate/sampler.ts'
import { cpuTarget, roundsOn, type Compute, type Target } from '../graph/target.ts'
import { chooseDevice, targetOf } from '../runtime/chooseDevice.ts'
import { decidable } from './sixteenBits.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { describeModel, patchModel, type Training } from '../runtime/patchedModel.ts'
import type { Quantisation } from '../runtime/quantisedWeights.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import { Optimizer } from '../train/optimizer.ts'
import { learningRate } from '../train/schedule.ts'
import type { Golden, Quantity } from './golden.ts'
import { startQuantities } from './adapterStarts.ts'
import { allLogits, balance, gradients, scores, type ScoredRow } from './passes.ts'
import { mergedLogits } from './merged.ts'
import { adam8Quantities, dequantQuantities, dynamicQuantities, nf4Quantities } from './quantised.ts'
import { referenceGreedy } from './referenceGreedy.ts'

export interface ComputeOptions {
  readonly device: DeviceChoice
  readonly compute: Compute | 'auto'
  /** How the adapted model is kept; default as it is stored. */
  readonly quantisation?: Quantisation
}

/** Settings of the reference's training curve; see the golden's metadata. */
const curve = { rate: 5e-3, warmup: 2, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, maxNorm: 1 } as const
/** Of the reference's dropout; see test/golden/adapters.py. */
const dropout = { rate: 0.25, seed: 7, step: 3 } as const
const dpo = { beta: 0.1, promptTokens: 5 } as const

/** NF4 as the reference of LoftQ makes it. */
const nf4: Quantisation = { kind: 'load', type: 'nf4', nested: false }

/** Everything that a golden case asks for, under the golden's own names. */
export class CaseComputation {
  readonly quantities = new Map<string, Quantity>()
  readonly target: Target
  private readonly golden: Golden
  private readonly options: ComputeOptions

  constructor(golden: Golden, options: ComputeOptions) {
    this.golden = golden
    this.options = options
    this.target = targetOf(options.device, options.compute)
  }

  private set(name: string, data: Float32Array | Int32Array | number, shape: readonly number[] = []): void {
    this.quantities.set(name, { shape, data: typeof data === 'number' ? Float32Array.of(data) : data })
  }

  private wants(prefix: string): boolean {
    return this.golden.expected().some((name) => name.startsWith(prefix))
  }

  async run(): Promise<void> {
    if (this.wants('full_grad')) await this.withModel({ kind: 'full' }, (model) => this.fullGradients(model))
    await this.withModel({ kind: 'none' }, (model) => this.baseForward(model))
    await this.quantisation()
    if (!this.wants('lora_') && !this.wants('curve_') && !this.wants('dpo_') && !this.wants('merged_')) return
    const adapter = optionsOfAdapter(await openPeftAdapter(this.adapter))
    await this.withModel(loraTraining(adapter), async (model) => {
      await restoreParameters(model, this.adapter)
      await this.adapterForward(model)
      if (this.wants('dpo_')) await this.preference(model)
      if (this.wants('curve_')) await this.trainingCurve(model)
    })
    if (this.wants('dropout_'))
      await this.withModel(loraTraining({ ...adapter, loraDropout: dropout.rate }), async (model) => {
        await restoreParameters(model, this.adapter)
        this.set('dropout_loss', await gradients(model, await this.labelledRows(), { dropout }))
        this.setParameters(model, 'dropout_grad', (name) => model.readGradient(name))
      })
    for (const init of ['pissa', 'loftq'] as const)
      if (this.wants(`${init}.`))
        await this.withModel(
          loraTraining({ ...adapter, initLoraWeights: init }),
          (model) => startQuantities(this.golden, model, init, this.set.bind(this)),
          init === 'loftq' ? nf4 : undefined,
        )
  }

  /** 4-bit weights and 8-bit optimizers, where the golden has them. */
  private async quantisation(): Promise<void> {
    const set = this.set.bind(this)
    await nf4Quantities(this.golden, this.options.device, set)
    await adam8Quantities(this.golden, this.options.device, set)
    await dynamicQuantities(this.golden, set)
    if (this.wants('dequant.')) await this.withModel({ kind: 'none' }, (model) => dequantQuantities(this.golden, model, set))
  }

  /** Each part runs on its own device memory: what one leaves behind cannot help another. */
  private async withModel(
    training: Training,
    use: (model: LoadedModel) => Promise<void> | void,
    quantisation = training.kind === 'lora' ? this.options.quantisation : undefined,
  ): Promise<void> {
    const runtime = new Runtime(this.options.device)
    try {
      const embeddingRate = this.golden.metadata.has('embedding_learning_rate')
      const patched = patchModel(await describeModel(this.golden.modelFolder), training, this.target, {
        embeddingRate,
        ...(quantisation === undefined ? {} : { quantisation }),
      })
      await use(await LoadedModel.load(patched, runtime, { seed: 0 }))
    } finally {
      runtime.dispose()
    }
  }

  private get adapter(): string {
    return join(this.golden.folder, 'adapter')
  }

  /** Rows without their padding (on the right), and the labels of the batch. */
  private async batch(): Promise<{ rows: Int32Array[]; labels: Int32Array[]; width: number }> {
    const [ids, labels] = await Promise.all(['input_ids', 'labels'].map((name) => this.golden.tokenRows(name)))
    const masks = this.golden.has('attention_mask') ? await this.golden.tokenRows('attention_mask') : undefined
    return {
      width: ids![0]!.length,
      labels: labels!,
      rows: ids!.map((row, i) => row.subarray(0, masks?.[i]!.reduce((sum, bit) => sum + bit, 0) ?? row.length)),
    }
  }

  /** The batch's loss: mean over labelled tokens. */
  private async labelledRows(): Promise<ScoredRow[]> {
    const { rows, labels, width } = await this.batch()
    const scored = (row: number, position: number) => labels[row]![position] !== -100
    const count = rows.reduce(
      (sum, ids, row) => sum + [...ids.keys()].filter((position) => position > 0 && scored(row, position)).length,
      0,
    )
    return rows.map((ids, row) => ({ ids, width, weight: (position) => (scored(row, position) ? 1 / count : undefined) }))
  }

  /** Logits of the padded batch: rows that the mask hides are zero. */
  private async paddedLogits(model: LoadedModel, name: string, weights = model.trained): Promise<void> {
    const { rows, width } = await this.batch()
    const flat = await allLogits(model, weights, rows, width)
    const { vocabulary } = model.spec
    const padded = new Float32Array(rows.length * width * vocabulary)
    let from = 0
    rows.forEach((ids, row) => {
      padded.set(flat.subarray(from * vocabulary, (from + ids.length) * vocabulary), row * width * vocabulary)
      from += ids.length
    })
    this.set(name, padded, [rows.length, width, vocabulary])
  }

  private async baseForward(model: LoadedModel): Promise<void> {
    await this.paddedLogits(model, 'logits', model.base)
    const labelled = await this.labelledRows()
    const nll = await scores(model, model.base, labelled)
    const { rows, width } = await this.batch()
    const perToken = new Float32Array(rows.length * (width - 1))
    let at = 0
    let loss = 0
    labelled.forEach(({ ids, weight }, row) => {
      for (let position = 1; position < ids.length; ++position) {
        const w = weight(position)
        if (w === undefined) continue
        perToken[row * (width - 1) + position - 1] = nll[at]!
        loss += w * nll[at++]!
      }
    })
    this.set('token_nll', perToken, [rows.length, width - 1])
    this.set('loss', loss)
    if (this.golden.has('greedy_ids')) await this.greedy(model)
  }

  private async greedy(model: LoadedModel): Promise<void> {
    const { rows } = await this.batch()
    const total = this.golden.shape('greedy_ids')[0]!
    const prompt = rows[0]!.subarray(0, 8)
    if (model.spec.rope.full.table(1).key !== '') {
      // With rounding nothing says which of these tokens rounding could decide: their logits come from texts cut in the reference's way.
      const made =
        roundsOn(this.target) === undefined
          ? await referenceGreedy(model, prompt, total)
          : await this.golden.integers('greedy_ids')
      this.set('greedy_ids', made, [total])
      return
    }
    const generator = new Generator(model, model.base, { batch: 1, maxLength: total })
    const [made] = await generator.generate([{ ids: prompt, seed: 0 }], {
      maxNewTokens: total - prompt.length,
      sampling: greedy,
      stopIds: new Set(),
    })
    const ids = Int32Array.from([...prompt, ...made!])
    this.set('greedy_ids', roundsOn(this.target) === undefined ? ids : await this.decidableGreedy(model, ids, prompt.length), [
      total,
    ])
  }

  /** See `decidable`: against the same model in fp32 on the processor. */
  private async decidableGreedy(model: LoadedModel, ids: Int32Array, prompt: number): Promise<Int32Array> {
    const reference = await this.golden.integers('greedy_ids')
    const runtime = new Runtime(chooseDevice('cpu'))
    try {
      const exactModel = await LoadedModel.load(patchModel(model.patched.model, { kind: 'none' }, cpuTarget()), runtime, {
        seed: 0,
      })
      const exact = await allLogits(exactModel, exactModel.base, [reference])
      return decidable(ids, reference, prompt, { exact, rounded: await allLogits(model, model.base, [reference]) })
    } finally {
      runtime.dispose()
    }
  }

  private async fullGradients(model: LoadedModel): Promise<void> {
    await gradients(model, await this.labelledRows())
    let squares = 0
    for (const { name, shape } of model.patched.layout.parameters) {
      const gradient = model.readGradient(name)
      squares += gradient.reduce((sum, value) => sum + value * value, 0)
      if (this.golden.has(`full_grad.${name}`)) this.set(`full_grad.${name}`, gradient, shape)
      if (this.golden.has(`full_grad_row_norm.${name}`))
        this.set(`full_grad_row_norm.${name}`, rowNorms(gradient, shape[0]!), [shape[0]!])
    }
    this.set('full_grad_norm', Math.sqrt(squares))
    // The reference knows these by their names in memory, and experts as one tensor [E, rows, cols].
    for (const { id, parameter, rows, cols, experts } of model.patched.full) {
      const name = `full_grad_row_norm.${parameter}`
      if (parameter === undefined || !this.golden.has(name)) continue
      const { offset } = model.patched.layout.weights.get(id)!.grad!.storage
      this.set(
        name,
        rowNorms(model.runtime.readFloats('grads', offset, rows * cols), rows),
        experts === undefined ? [rows] : [experts, rows / experts],
      )
    }
  }

  private async adapterForward(model: LoadedModel): Promise<void> {
    await this.paddedLogits(model, 'lora_logits')
    this.set('lora_loss', await gradients(model, await this.labelledRows()))
    this.setParameters(model, 'lora_grad', (name) => model.readGradient(name))
    if (this.golden.has('router_aux_loss'))
      this.set('router_aux_loss', await balance(model, model.trained, await this.labelledRows()))
  }

  /** A matrix for each parameter that the golden holds under `<prefix>.`, row norms where it holds `<prefix>_row_norm.`. */
  private setParameters(model: LoadedModel, prefix: string, read: (name: string) => Float32Array): void {
    for (const { name, shape } of model.patched.layout.parameters) {
      if (this.golden.has(`${prefix}.${name}`)) this.set(`${prefix}.${name}`, read(name), shape)
      if (this.golden.has(`${prefix}_row_norm.${name}`))
        this.set(`${prefix}_row_norm.${name}`, rowNorms(read(name), shape[0]!), [shape[0]!])
    }
  }

  /** DPO (arXiv 2305.18290), sigmoid, the reference with adapters off. */
  private async preference(model: LoadedModel): Promise<void> {
    const chosen = await this.golden.tokenRows('dpo_chosen_ids')
    const rejected = await this.golden.tokenRows('dpo_rejected_ids')
    const pairs = chosen.length
    const scored = (ids: Int32Array, weight: number): ScoredRow => ({
      ids,
      weight: (position) => (position >= dpo.promptTokens ? weight : undefined),
    })
    const logps = async (rows: readonly Int32Array[], weights: LoadedModel['trained']) => {
      const nll = await scores(
        model,
        weights,
        rows.map((ids) => scored(ids, 1)),
      )
      const each = nll.length / rows.length
      return rows.map((_, row) => -nll.subarray(row * each, (row + 1) * each).reduce((sum, value) => sum + value, 0))
    }
    const policy = { chosen: await logps(chosen, model.trained), rejected: await logps(rejected, model.trained) }
    const reference = { chosen: await logps(chosen, model.base), rejected: await logps(rejected, model.base) }
    let loss = 0
    const coefficients = policy.chosen.map((logp, i) => {
      const margin = dpo.beta * (logp - policy.rejected[i]! - (reference.chosen[i]! - reference.rejected[i]!))
      loss += Math.log1p(Math.exp(-margin)) / pairs
      return dpo.beta / (1 + Math.exp(margin)) / pairs // −∂loss/∂logp of the chosen row
    })
    await gradients(model, [
      ...chosen.map((ids, i) => scored(ids, coefficients[i]!)),
      ...rejected.map((ids, i) => scored(ids, -coefficients[i]!)),
    ])
    this.set('dpo_policy_chosen_logps', Float32Array.from(policy.chosen), [pairs])
    this.set('dpo_policy_rejected_logps', Float32Array.from(policy.rejected), [pairs])
    this.set('dpo_ref_chosen_logps', Float32Array.from(reference.chosen), [pairs])
    this.set('dpo_ref_rejected_logps', Float32Array.from(reference.rejected), [pairs])
    this.set('dpo_loss', loss)
    this.setParameters(model, 'dpo_grad', (name) => model.readGradient(name))
  }

  /** Some steps of training from the adapter as loaded, then the result, and the same merged into the base. */
  private async trainingCurve(model: LoadedModel): Promise<void> {
    const [batches, perBatch, width] = this.golden.shape('curve_input_ids') as [number, number, number]
    const rows = await this.golden.tokenRows('curve_input_ids')
    const steps = this.golden.shape('curve_loss')[0]!
    const optimizer = new Optimizer(model.runtime, model.patched, {
      beta1: curve.betas[0],
      beta2: curve.betas[1],
      eps: curve.eps,
      weightDecay: curve.weightDecay,
      maxGradNorm: curve.maxNorm,
    })
    const embeddingRate = Number(this.golden.metadata.get('embedding_learning_rate') ?? curve.rate)
    const [losses, norms, rates] = [new Float32Array(steps), new Float32Array(steps), new Float32Array(steps)]
    const weight = 1 / (perBatch * (width - 1))
    for (let step = 0; step < steps; ++step) {
      const first = (step % batches) * perBatch
      losses[step] = await gradients(
        model,
        rows.slice(first, first + perBatch).map((ids) => ({ ids, weight: () => weight })),
      )
      const share = learningRate(step, { type: 'linear', totalSteps: steps, warmupSteps: curve.warmup })
      rates[step] = curve.rate * share
      await optimizer.update(step + 1, () => ({ default: curve.rate * share, embedding: embeddingRate * share }))
      norms[step] = (await optimizer.result()).gradientNorm
    }
    this.set('curve_loss', losses, [steps])
    this.set('curve_grad_norm', norms, [steps])
    this.set('curve_lr', rates, [steps])
    this.setParameters(model, 'curve_final', (name) => model.readParameter(name))
    const { rows: batch } = await this.batch()
    const shape = [1, batch[0]!.length, model.spec.vocabulary]
    this.set('curve_final_logits', await allLogits(model, model.trained, [batch[0]!]), shape)
    this.set('merged_logits', await mergedLogits(model, [batch[0]!], this.options.device), shape)
  }
}

function rowNorms(values: Float32Array, rows: number): Float32Array {
  const width = values.length / rows
  return Float32Array.from({ length: rows }, (_, row) =>
    Math.sqrt(values.subarray(row * width, (row + 1) * width).reduce((sum, value) => sum + value * value, 0)),
  )
}
