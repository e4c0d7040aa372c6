import { UnslothError } from '#shared/errors.ts'
import { packRows } from '../data/packRows.ts'
import { permutation } from '../data/random.ts'
import { lengthOf } from '../data/sample.ts'

/** Not trained. */
const ignored = -100

export interface OrderOptions {
  /** Samples, or rows when packing. */
  readonly count: number
  /** Of them in one optimizer step: batch size × accumulation. */
  readonly perStep: number
  readonly seed: number
  /** `false` keeps the order of the file in each epoch. */
  readonly shuffle: boolean
}

/** What one optimizer step takes. */
export interface StepSelection {
  /** Counts from 0. */
  readonly epoch: number
  readonly indices: Uint32Array
  /** Epochs done after this step. */
  readonly epochAfter: number
}

/** The order of one epoch: a permutation decided by (seed, epoch), see random.ts. */
export const epochOrder = (count: number, seed: number, epoch: number, shuffle: boolean): Uint32Array =>
  shuffle ? permutation(count, seed, epoch) : Uint32Array.from({ length: count }, (_, index) => index)

/**
 * Which samples each optimizer step takes. Every epoch takes each sample once; its last step has what is left, as in
 * transformers, and a step never reaches into the next epoch. A step is found from its number alone, so a run goes on anywhere.
 */
export class SampleOrder {
  readonly options: OrderOptions
  readonly stepsPerEpoch: number
  private current: { readonly epoch: number; readonly order: Uint32Array } | undefined

  constructor(options: OrderOptions) {
    this.options = options
    this.stepsPerEpoch = Math.ceil(options.count / options.perStep)
  }

  /** `step` counts from 0 over all epochs. */
  step(step: number): StepSelection {
    const { count, perStep, seed, shuffle } = this.options
    const epoch = Math.floor(step / this.stepsPerEpoch)
    if (this.current?.epoch !== epoch) this.current = { epoch, order: epochOrder(count, seed, epoch, shuffle) }
    const inEpoch = step % this.stepsPerEpoch
    const indices = this.current.order.subarray(inEpoch * perStep, Math.min(count, (inEpoch + 1) * perStep))
    return { epoch, indices, epochAfter: epoch + (inEpoch + 1) / this.stepsPerEpoch }
  }
}

/** A sample as the packing of micro-steps takes it. */
export interface StepSample {
  readonly ids: Int32Array
  /** Aligned with `ids`; −100 is not trained. */
  readonly labels: Int32Array
  /** Of `ids`, where reading those takes a file. */
  readonly length?: number
  /** Its number in the data set: the key of its dropout masks, whatever it is packed with. */
  readonly key: number
}

/** What a plan has room for. Labelled rows and sequences default to as many as tokens. */
export interface MicroCapacity {
  readonly tokens: number
  readonly labelled?: number
  readonly sequences?: number
}

/**
 * One micro-step: whole samples one after another, n tokens, s sequences, m labelled rows. Row i of a sequence predicts the
 * token after it, so `labelIndex` holds the rows whose next token is trained and `labels` those tokens.
 */
export interface MicroBatch {
  readonly ids: Int32Array
  /** Restart at 0 in each sequence. */
  readonly positions: Int32Array
  /** (sample key, position) of each token. */
  readonly tokenKeys: Int32Array
  /** First row of each sequence and one past the last: s + 1. */
  readonly qStart: Int32Array
  readonly kvStart: Int32Array
  readonly kvLength: Int32Array
  readonly labelIndex: Int32Array
  readonly labels: Int32Array
  /** 1 / labelled tokens of the whole optimizer step. */
  readonly weights: Float32Array
  /** Which of the step's samples each sequence is. */
  readonly samples: Int32Array
  /** The smallest of the capacities that it fits, by its number in the list given. */
  readonly capacity: number
}

/** Reads what a stored sample makes when it is asked. */
const withKey = ({ ids, labels }: Omit<StepSample, 'key'>, key: number): StepSample => ({ ids, labels, key })

/** Labelled rows of a sample: its labels but the first, which nothing predicts. */
function labelledRows({ labels }: Pick<StepSample, 'labels'>): number {
  let rows = 0
  for (let at = 1; at < labels.length; at++) if (labels[at] !== ignored) rows++
  return rows
}

/** Labelled tokens of several samples: what their loss is divided by. */
export const labelledTokens = (samples: Iterable<Pick<StepSample, 'labels'>>): number => {
  let total = 0
  for (const sample of samples) total += labelledRows(sample)
  return total
}

interface Bin {
  readonly members: number[]
  tokens: number
  labelled: number
}

const fits = (bin: Bin, tokens: number, labelled: number, capacity: MicroCapacity): boolean =>
  bin.tokens + tokens <= capacity.tokens &&
  bin.labelled + labelled <= (capacity.labelled ?? Infinity) &&
  bin.members.length < (capacity.sequences ?? Infinity)

/** First-fit decreasing into bins of the largest capacity; the members of a bin keep the order of the step. */
function firstFit(samples: readonly StepSample[], rows: readonly number[], capacity: MicroCapacity): Bin[] {
  const order = samples.map((_, index) => index).sort((a, b) => samples[b]!.ids.length - samples[a]!.ids.length || a - b)
  const bins: Bin[] = []
  for (const index of order) {
    const tokens = samples[index]!.ids.length
    const labelled = rows[index]!
    let bin = bins.find((candidate) => fits(candidate, tokens, labelled, capacity))
    if (bin === undefined) {
      bin = { members: [], tokens: 0, labelled: 0 }
      if (!fits(bin, tokens, labelled, capacity))
        throw new UnslothError(
          'INTERNAL',
          `a sample of ${tokens} tokens is longer than the largest micro-step of ${capacity.tokens} tokens`,
        )
      bins.push(bin)
    }
    bin.members.push(index)
    bin.tokens += tokens
    bin.labelled += labelled
  }
  for (const { members } of bins) members.sort((a, b) => a - b)
  return bins
}

function layOut(
  samples: readonly StepSample[],
  { members, tokens, labelled }: Bin,
  weight: number,
  capacity: number,
): MicroBatch {
  const s = members.length
  const batch: MicroBatch = {
    ids: new Int32Array(tokens),
    positions: new Int32Array(tokens),
    tokenKeys: new Int32Array(2 * tokens),
    qStart: new Int32Array(s + 1),
    kvStart: new Int32Array(s),
    kvLength: new Int32Array(s),
    labelIndex: new Int32Array(labelled),
    labels: new Int32Array(labelled),
    weights: new Float32Array(labelled).fill(weight),
    samples: Int32Array.from(members),
    capacity,
  }
  let row = 0
  let label = 0
  for (const [sequence, member] of members.entries()) {
    const { ids, labels, key } = samples[member]!
    batch.ids.set(ids, row)
    batch.kvStart[sequence] = row
    batch.kvLength[sequence] = ids.length
    for (let position = 0; position < ids.length; position++) {
      batch.positions[row + position] = position
      batch.tokenKeys[2 * (row + position)] = key
      batch.tokenKeys[2 * (row + position) + 1] = position
      const next = labels[position + 1] ?? ignored
      if (next === ignored) continue
      batch.labelIndex[label] = row + position
      batch.labels[label++] = next
    }
    row += ids.length
    batch.qStart[sequence + 1] = row
  }
  return batch
}

/**
 * The samples of one optimizer step in as few micro-steps as first-fit decreasing finds. The loss of the step is Σ weight·nll
 * over all of them, so any split gives the same. `total`: what the loss is divided by; default: the
 * labelled tokens of the samples.
 */
export function packMicroSteps(
  samples: readonly StepSample[],
  capacities: readonly (number | MicroCapacity)[],
  total?: number,
): MicroBatch[] {
  const sizes = capacities.map((size) => (typeof size === 'number' ? { tokens: size } : size))
  const largest = sizes.reduce((best, size) => (size.tokens > best.tokens ? size : best), { tokens: 0 })
  const rows = samples.map(labelledRows)
  const labelled = total ?? rows.reduce((sum, count) => sum + count, 0)
  if (labelled <= 0) throw new UnslothError('INTERNAL', 'an optimizer step has no labelled token')
  return firstFit(samples, rows, largest).map((bin) => layOut(samples, bin, 1 / labelled, smallestFit(bin, sizes)))
}

function smallestFit(bin: Bin, sizes: readonly MicroCapacity[]): number {
  const empty: Bin = { members: [], tokens: 0, labelled: 0 }
  let best = -1
  for (const [index, size] of sizes.entries()) {
    const room = fits(empty, bin.tokens, bin.labelled, size) && bin.members.length <= (size.sequences ?? Infinity)
    if (room && (best < 0 || size.tokens < sizes[best]!.tokens)) best = index
  }
  return best
}

export interface TrainingBatchOptions {
  readonly batchSize: number
  readonly gradientAccumulation: number
  readonly seed: number
  readonly shuffle: boolean
  /** Join samples into rows of so many tokens; a batch then counts rows. */
  readonly packing?: { readonly rowTokens: number }
}

/** The micro-steps of any optimizer step of a run, found from the step's number alone. */
export class TrainingBatches {
  /** Samples, or rows when packing: what an epoch is counted in. */
  readonly count: number
  readonly order: SampleOrder
  private readonly samples: readonly Omit<StepSample, 'key'>[]
  private readonly rows: readonly (readonly number[])[] | undefined

  constructor(samples: readonly Omit<StepSample, 'key'>[], options: TrainingBatchOptions) {
    const { batchSize, gradientAccumulation, seed, shuffle, packing } = options
    this.samples = samples
    this.rows = packing && packRows(samples.map(lengthOf), { rowTokens: packing.rowTokens, seed, shuffle })
    this.count = this.rows?.length ?? samples.length
    this.order = new SampleOrder({ count: this.count, perStep: batchSize * gradientAccumulation, seed, shuffle })
  }

  /** The samples of a step, in its order. */
  samplesOf(step: number): StepSample[] {
    const { indices } = this.order.step(step)
    const keys = Array.from(indices).flatMap((index) => this.rows?.[index] ?? [index])
    return keys.map((key) => withKey(this.samples[key]!, key))
  }

  microSteps(step: number, capacities: readonly (number | MicroCapacity)[]): MicroBatch[] {
    return packMicroSteps(this.samplesOf(step), capacities)
  }

  /** Most tokens that any one step of an epoch can have: an upper bound for plans. */
  get longestStep(): number {
    return this.most((row) => row.reduce((sum, index) => sum + lengthOf(this.samples[index]!), 0))
  }

  /** Most samples that any one step can have. */
  get mostSequences(): number {
    return this.most((row) => row.length)
  }

  /** The largest sum of a measure over as many rows as a step takes. */
  private most(measure: (row: readonly number[]) => number): number {
    const sizes = (this.rows ?? this.samples.map((_, index) => [index])).map(measure)
    return sizes
      .sort((a, b) => b - a)
      .slice(0, this.order.options.perStep)
      .reduce((sum, size) => sum + size, 0)
  }
}

/** Samples that are packed together for evaluation: enough to fill micro-steps well, few enough to be lazy. */
const evaluationWindow = 256

/** A whole set as micro-steps whose weights add up to 1, so that Σ weight·nll is its mean loss. Can be gone through again. */
export function evaluationBatches(
  samples: readonly Omit<StepSample, 'key'>[],
  capacities: readonly (number | MicroCapacity)[],
): Iterable<MicroBatch> {
  const total = labelledTokens(samples)
  return {
    *[Symbol.iterator]() {
      for (let from = 0; from < samples.length; from += evaluationWindow) {
        const window = samples.slice(from, from + evaluationWindow).map((sample, index) => withKey(sample, from + index))
        yield* packMicroSteps(window, capacities, total)
      }
    },
  }
}
