import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import type { Dataset } from './dataset.ts'
import { permutation } from './random.ts'
import type { Sample } from './sample.ts'
import { datasetStatistics, type RowCounts } from './statistics.ts'

/** When a mixture is complete: with the first source that has nothing new left, or once each has given all it has. */
export type MixUntil = 'first' | 'all'

export interface MixSource {
  /** For messages: its files. */
  readonly name: string
  readonly dataset: Dataset
  readonly weight: number
}

/** Random streams of the order of sources; epochs use their own numbers from 0, the held-out rows the last one. */
const firstStream = 0x8000_0000

/**
 * How many samples of each source a mixture has: in every beginning of it the shares are those of the weights, to within one
 * sample. With `all`, sources that are used up begin again.
 */
function* draws(sizes: readonly number[], weights: readonly number[], until: MixUntil): Generator<number> {
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const taken = sizes.map(() => 0)
  for (let count = 1; ; count++) {
    let [best, lack] = [0, -Infinity]
    for (const [index, weight] of weights.entries()) {
      const missing = (weight / total) * count - taken[index]!
      if (missing > lack) [best, lack] = [index, missing]
    }
    if (until === 'first' && taken[best] === sizes[best]) return
    taken[best]!++
    yield best
    if (until === 'all' && taken.every((number, index) => number >= sizes[index]!)) return
  }
}

/** One data set of several, in the shares of their weights; which samples are taken of each is decided by the seed. */
export function mixDatasets(sources: readonly MixSource[], until: MixUntil, seed: number): Dataset {
  const empty = sources.find(({ dataset }) => dataset.samples.length === 0)
  if (empty !== undefined)
    throw new UnslothError('DATA', `${empty.name}: there is nothing to mix in.`, {
      hint: 'Remove it from the sources, with its weight.',
    })
  const orders = sources.map(({ dataset }, index) => permutation(dataset.samples.length, seed, firstStream + index))
  const sizes = sources.map(({ dataset }) => dataset.samples.length)
  const taken = sources.map(() => 0)
  const samples: Sample[] = []
  for (const source of draws(
    sizes,
    sources.map(({ weight }) => weight),
    until,
  )) {
    const order = orders[source]!
    samples.push(sources[source]!.dataset.samples[order[taken[source]!++ % order.length]!]!)
  }
  const shares = sources.map(
    ({ name }, index) =>
      `${name} ${formatCount(taken[index]!)} of ${formatCount(sizes[index]!)}` +
      (taken[index]! > sizes[index]! ? ' (repeated)' : ''),
  )
  const first = sources[0]!.dataset
  const formats = [...new Set(sources.map(({ dataset }) => dataset.format.format))]
  return {
    samples,
    format: {
      ...first.format,
      reason:
        `${sources.length} sources mixed: ${shares.join(', ')}; ` +
        (formats.length > 1 ? `formats ${formats.join(', ')}` : first.format.reason),
    },
    rows: addedCounts(sources.map(({ dataset }) => dataset.rows)),
    statistics: datasetStatistics(samples),
    warnings: sources.flatMap(({ dataset }) => dataset.warnings),
    fromCache: sources.every(({ dataset }) => dataset.fromCache),
  }
}

/** Several data sets one after another. */
export function joinDatasets(parts: readonly Dataset[]): Dataset {
  const samples = parts.flatMap((part) => part.samples)
  return {
    ...parts[0]!,
    samples,
    rows: addedCounts(parts.map(({ rows }) => rows)),
    statistics: datasetStatistics(samples),
    warnings: parts.flatMap(({ warnings }) => warnings),
    fromCache: parts.every(({ fromCache }) => fromCache),
  }
}

function addedCounts(counts: readonly RowCounts[]): RowCounts {
  const keys = Object.keys(counts[0]!) as (keyof RowCounts)[]
  return Object.fromEntries(keys.map((key) => [key, counts.reduce((sum, count) => sum + count[key], 0)])) as unknown as RowCounts
}
