import type { Compute } from '../graph/target.ts'

/** The number formats that a GPU of this compute capability (80 for 8.0) trains in. */
export const computeModes = (capability: number): Compute[] => (capability >= 80 ? ['float32', 'bfloat16', 'float16'] : ['float32', 'float16'])
