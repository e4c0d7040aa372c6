import { cudaTarget, type Compute, type Target } from '../graph/target.ts'

/** The number formats that a GPU of this compute capability (80 for 8.0) trains in. */
export const computeModes = (capability: number): Compute[] =>
  capability >= 80 ? ['float32', 'tfloat32', 'bfloat16', 'float16'] : ['float32', 'float16']

/** The type of activations in a mode, and whether products round to TF32. */
export const numbersOf = (compute: Compute): { activation: Target['activation']; tf32: boolean } => {
  const { activation, precision } = cudaTarget(compute)
  return { activation, tf32: precision === 2 }
}
