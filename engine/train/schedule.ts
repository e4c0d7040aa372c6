/** Shapes of the learning rate, named as transformers' `get_scheduler` names them. */
export type ScheduleType = 'constant' | 'constant_with_warmup' | 'linear' | 'cosine' | 'cosine_with_restarts' | 'polynomial'

export interface Schedule {
  readonly type: ScheduleType
  readonly totalSteps: number
  /** Steps over which the rate rises from 0; `constant` has none. */
  readonly warmupSteps?: number
  /** `cosine`: waves, default 0.5 (from the full rate to 0 once); `cosine_with_restarts`: how often it starts, default 1. */
  readonly numCycles?: number
  /** Degree of `polynomial`; default 1. */
  readonly power?: number
  /** Where `polynomial` ends, as a share of the peak rate; default 0. */
  readonly rateEnd?: number
}

/**
 * What the peak learning rate is multiplied by in optimizer step `step`, counted from 0: with a warm-up the first is 0.
 * Formulas of transformers' optimization.py, so that a run is the same as there.
 */
export function learningRate(step: number, schedule: Schedule): number {
  const { type, totalSteps, warmupSteps = 0 } = schedule
  if (type === 'constant') return 1
  if (step < warmupSteps) return step / Math.max(1, warmupSteps)
  if (type === 'constant_with_warmup') return 1
  const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps)
  switch (type) {
    case 'linear':
      return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps))
    case 'cosine':
      return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (schedule.numCycles ?? 0.5) * 2 * progress)))
    case 'cosine_with_restarts':
      return progress >= 1 ? 0 : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (((schedule.numCycles ?? 1) * progress) % 1))))
    case 'polynomial': {
      const { power = 1, rateEnd = 0 } = schedule
      return step > totalSteps ? rateEnd : (1 - rateEnd) * Math.max(0, 1 - progress) ** power + rateEnd
    }
  }
}

/** Steps of the warm-up: a number above 0 wins, else a share of all steps, rounded up. */
export const warmupStepCount = (
  totalSteps: number,
  { steps = 0, ratio = 0 }: { readonly steps?: number; readonly ratio?: number },
): number => (steps > 0 ? steps : Math.ceil(ratio * totalSteps))

export interface RunLength {
  /** Samples, or rows when packing. */
  readonly samples: number
  readonly batchSize: number
  readonly gradientAccumulation: number
  /** May be a fraction. */
  readonly epochs: number
  /** Above 0 it wins over `epochs`. */
  readonly maxSteps?: number
}

/** Optimizer steps of one epoch, as transformers counts them: the last one may have fewer samples. */
export const stepsPerEpoch = ({
  samples,
  batchSize,
  gradientAccumulation,
}: Pick<RunLength, 'samples' | 'batchSize' | 'gradientAccumulation'>): number =>
  Math.ceil(Math.ceil(samples / batchSize) / gradientAccumulation)

/** Optimizer steps of a run. */
export const totalStepCount = (run: RunLength): number =>
  run.maxSteps !== undefined && run.maxSteps > 0 ? run.maxSteps : Math.ceil(run.epochs * stepsPerEpoch(run))
