import { lengthOf, type Sample } from './sample.ts'

export interface LengthBin {
  /** Lengths from–to, both included. */
  readonly from: number
  readonly to: number
  readonly samples: number
}

/** Lengths of samples in tokens. */
export interface LengthStatistics {
  readonly shortest: number
  readonly mean: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly longest: number
  readonly histogram: readonly LengthBin[]
}

export interface DatasetStatistics {
  readonly samples: number
  readonly tokens: number
  /** Tokens that are predicted and trained. */
  readonly labelledTokens: number
  readonly lengths: LengthStatistics
}

/** Rows that did not become samples as they are. */
export interface RowCounts {
  readonly rows: number
  readonly truncated: number
  /** Became several samples. */
  readonly split: number
  readonly tooLong: number
  readonly empty: number
  readonly masked: number
  /** Bad answers of KTO data. */
  readonly undesired: number
  /** Could not be read. */
  readonly bad: number
}

const binCount = 16

/** The value that a share of the sorted values does not exceed (nearest rank). */
const percentile = (sorted: ArrayLike<number>, share: number): number =>
  sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0

/** Counts, lengths and their distribution. */
export function datasetStatistics(samples: readonly Sample[]): DatasetStatistics {
  const lengths = Float64Array.from(samples, lengthOf).sort()
  const tokens = lengths.reduce((sum, length) => sum + length, 0)
  const longest = lengths.at(-1) ?? 0
  const width = Math.max(1, Math.ceil(longest / binCount))
  const counts = new Array<number>(Math.ceil(longest / width)).fill(0)
  for (const length of lengths) counts[Math.max(0, Math.ceil(length / width) - 1)]!++
  return {
    samples: samples.length,
    tokens,
    labelledTokens: samples.reduce((sum, { labelled }) => sum + labelled, 0),
    lengths: {
      shortest: lengths[0] ?? 0,
      mean: samples.length === 0 ? 0 : tokens / samples.length,
      p50: percentile(lengths, 0.5),
      p95: percentile(lengths, 0.95),
      p99: percentile(lengths, 0.99),
      longest,
      histogram: counts.map((count, index) => ({ from: index * width + 1, to: (index + 1) * width, samples: count })),
    },
  }
}
