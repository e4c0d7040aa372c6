import type { StepRecord } from '#shared/metrics.ts'

/** A logged step as the trainer writes it; a function of the step alone. */
export function stepRecord(step: number): StepRecord {
  return {
    type: 'step',
    step,
    epoch: step / 100,
    loss: 2 + Math.cos(step),
    learning_rate: 2e-4 / (step + 1),
    grad_norm: 1 / (step + 3),
    num_tokens: step * 512,
    tokens_per_second: 1000.5,
    time: 1_700_000_000_000 + step,
  }
}
