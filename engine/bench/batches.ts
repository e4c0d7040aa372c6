import { packMicroSteps, type MicroBatch, type StepSample } from '../train/batches.ts'
import type { LossBatch } from '../train/trainer.ts'
import { normals } from './madeUpNumbers.ts'

/** The k-th made-up token of a sample. */
const tokenOf = (sample: number, k: number, vocabulary: number): number => ((sample * 104_729 + k + 1) * 7919) % vocabulary

/** Tokens that follow from the key, all labelled. */
export function madeUpSample(key: number, tokens: number, vocabulary: number): StepSample {
  const ids = Int32Array.from({ length: tokens }, (_, k) => tokenOf(key, k, vocabulary))
  return { ids, labels: ids, key }
}

/** Sequences of one length, all labelled, in one micro-step. */
export function madeUpBatch(tokens: number, vocabulary: number, sequences = 1): LossBatch {
  const samples = Array.from({ length: sequences }, (_, key) => madeUpSample(key, tokens, vocabulary))
  return packMicroSteps(samples, [tokens * sequences])[0]!
}

/**
 * Lengths of everyday instruction data: log-normal, median 118, mean about 150, between 16 and 1024 tokens. `perStep` samples for each
 * of `steps` optimizer steps.
 */
export function instructionSteps(steps: number, perStep: number, vocabulary: number): StepSample[][] {
  const random = normals(12_345)
  const length = () => Math.round(Math.min(1024, Math.max(16, Math.exp(0.7 * random.next().value + Math.log(118)))))
  return Array.from({ length: steps }, (_, step) =>
    Array.from({ length: perStep }, (_, index) => madeUpSample(step * perStep + index, length(), vocabulary)),
  )
}

/** The micro-steps of each step, packed into a plan's capacity. */
export const packSteps = (steps: readonly (readonly StepSample[])[], tokens: number): MicroBatch[][] =>
  steps.map((samples) => packMicroSteps(samples, [tokens]))
