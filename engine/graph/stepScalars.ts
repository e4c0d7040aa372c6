import { whole, type Storage, type Tensor } from './graph.ts'

/** The few f64 numbers of an optimizer step that stay on the device: plans of micro-steps and the optimizer's share them. */
const cells = ['loss', 'squares', 'scalars', 'scaling', 'choices'] as const
export type StepScalar = (typeof cells)[number]
/** Bytes between them: what a device reads at once. */
const spacing = 256
/** Gradient scale, 1 − β1ᵗ, 1 − β2ᵗ, then the learning rate of each parameter group. */
export const mostScalars = 16
/** Loss scale, good steps since it changed, steps skipped so far, loss scale of the step itself. */
const scalingNumbers = 4
const columns: Readonly<Record<StepScalar, number>> = {
  loss: 1,
  squares: 1,
  scalars: mostScalars,
  scaling: scalingNumbers,
  choices: spacing / 8,
}

export const stepScalarBytes = cells.length * spacing
export const stepScalarOffset = (cell: StepScalar): number => cells.indexOf(cell) * spacing

/**
 * `loss`: Σ weight·nll of the micro-steps so far; `squares`: Σ g²; `scalars`: see `adamw` in commands.ts; `scaling` and `choices`: see
 * `updateScale` there.
 */
export function stepScalar(cell: StepScalar): Tensor {
  const storage: Storage = {
    name: cell,
    arena: 'scalars',
    offset: stepScalarOffset(cell),
    dtype: 'f64',
    rows: 1,
    cols: columns[cell],
    rule: 'fixed',
    keep: 'residual',
    layer: -1,
  }
  return whole(storage)
}
