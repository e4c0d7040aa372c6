/** Dynamic loss scaling as torch.amp.GradScaler does it: the gradient of scale·loss stays within the range of fp16. */
export interface LossScaleOptions {
  /** The first scale. Default 65536. */
  readonly initial?: number
  /** The scale doubles after so many good steps in a row. Default 2000. */
  readonly growthInterval?: number
}

/** torch.amp.GradScaler's defaults; a spoilt step halves the scale. */
export const lossScaleDefaults: Required<LossScaleOptions> = { initial: 65_536, growthInterval: 2000 }

/** What training goes on from. */
export interface LossScaleState {
  readonly scale: number
  /** Good steps since the scale changed. */
  readonly goodSteps: number
  /** Steps of the run that were skipped: the schedule and the optimizer's count of steps stand back by so many. */
  readonly skipped: number
}

/** Steps that may be under way before the outcome of one is known. */
export const mostAhead = 3
