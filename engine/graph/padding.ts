import type { Capacity } from './graph.ts'

/** Packed sequences are padded to a multiple of this: their count changes from step to step, and each count is a CUDA graph. */
const sequenceMultiple = 16

const roundUp = (count: number, multiple: number): number => Math.ceil(count / multiple) * multiple

/**
 * Row counts that a device's kernels are launched for: tokens and labelled rows in multiples of `rowMultiple`, and room for the
 * sequence that padding tokens form. With a multiple of 1 there is no padding.
 */
export function paddedCapacity({ tokens, labelled, sequences }: Capacity, rowMultiple: number): Capacity {
  if (rowMultiple === 1) return { tokens, labelled, sequences }
  return {
    tokens: roundUp(tokens, rowMultiple),
    labelled: roundUp(labelled, rowMultiple),
    sequences: roundUp(sequences + 1, sequenceMultiple),
  }
}
