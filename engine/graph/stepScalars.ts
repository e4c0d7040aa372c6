import { whole, type Storage, type Tensor } from './graph.ts'

/** The few f64 numbers of an optimizer step that stay on the device: plans of micro-steps and the optimizer's share them. */
const cells = ['loss', 'squares', 'scalars'] as const
/** Bytes between them: what a device reads at once. */
const spacing = 256
/** Gradient scale, 1 − β1ᵗ, 1 − β2ᵗ, then the learning rate of each parameter group. */
export const mostScalars = 16

export const stepScalarBytes = cells.length * spacing
export const stepScalarOffset = (cell: (typeof cells)[number]): number => cells.indexOf(cell) * spacing

/** `loss`: Σ weight·nll of the micro-steps so far; `squares`: Σ g²; `scalars`: see `adamw` in commands.ts. */
export function stepScalar(cell: (typeof cells)[number]): Tensor {
  const storage: Storage = {
    name: cell, arena: 'scalars', offset: stepScalarOffset(cell), dtype: 'f64', rows: 1, cols: cell === 'scalars' ? mostScalars : 1, rule: 'fixed', keep: 'residual',
    layer: -1,
  }
  return whole(storage)
}
