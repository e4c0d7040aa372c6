import { permutation } from './random.ts'

export interface PackingOptions {
  /** Tokens in a row. */
  readonly rowTokens: number
  readonly seed: number
  /** Shuffle before the windows are taken, so that rows do not join neighbours of a sorted file. */
  readonly shuffle: boolean
  /** Samples that are packed together. A larger window packs denser, a smaller one leaves the order more random. */
  readonly window?: number
}

const defaultWindow = 4096

/** Random stream of the packing; epochs use their own numbers from 0. */
const packingStream = 0xffff_fffe

/** Open rows by the room they have left, so that the tightest fit is found in logarithmic time. */
class OpenRows {
  /** Sorted by room, then by row: [room, row] pairs. */
  private readonly rows: { room: number; row: number }[] = []

  /** The row with the least room of at least `length`, the oldest of equals; taken out. */
  take(length: number): { room: number; row: number } | undefined {
    const at = this.lowerBound(length, -1)
    return at < this.rows.length ? this.rows.splice(at, 1)[0] : undefined
  }

  put(room: number, row: number): void {
    this.rows.splice(this.lowerBound(room, row), 0, { room, row })
  }

  private lowerBound(room: number, row: number): number {
    let [low, high] = [0, this.rows.length]
    while (low < high) {
      const middle = (low + high) >> 1
      const entry = this.rows[middle]!
      if (entry.room < room || (entry.room === room && entry.row < row)) low = middle + 1
      else high = middle
    }
    return low
  }
}

/** Best-fit decreasing: each sample, longest first, into the row that it fills best. */
function packWindow(members: Uint32Array, lengths: ArrayLike<number>, rowTokens: number): number[][] {
  const sorted = Array.from(members, (sample, order) => ({ sample, order })).sort(
    (a, b) => lengths[b.sample]! - lengths[a.sample]! || a.order - b.order,
  )
  const rows: number[][] = []
  const open = new OpenRows()
  for (const { sample } of sorted) {
    const length = lengths[sample]!
    const found = open.take(length)
    const row = found?.row ?? rows.push([]) - 1
    rows[row]!.push(sample)
    open.put((found?.room ?? rowTokens) - length, row)
  }
  return rows
}

/**
 * Joins samples into rows of at most `rowTokens` tokens: the lists of sample numbers of all rows. Done once for a run, as TRL
 * does, so the number of rows is the same in each epoch; the rows are then shuffled anew. A sample longer than a row gets one
 * of its own.
 */
export function packRows(
  lengths: ArrayLike<number>,
  { rowTokens, seed, shuffle, window = defaultWindow }: PackingOptions,
): number[][] {
  const order = shuffle ? permutation(lengths.length, seed, packingStream) : Uint32Array.from(lengths, (_, index) => index)
  const rows: number[][] = []
  for (let from = 0; from < order.length; from += window)
    rows.push(...packWindow(order.subarray(from, from + window), lengths, rowTokens))
  return rows
}
