import { UnslothError } from '#shared/errors.ts'
import type { PrecisionCode } from '../graph/ops/linear.ts'
import { physicalCores } from '../runtime/cores.ts'

/** What `--compute` or `training.compute` asks for: fp32 unless bfloat16 is named. */
export const computeOf = (compute: string): 'float32' | 'bfloat16' => (compute === 'bfloat16' ? 'bfloat16' : 'float32')

/** The same as the code that commands carry. */
export const precisionOf = (compute: string): PrecisionCode => (computeOf(compute) === 'bfloat16' ? 1 : 0)

/** Threads to compute with; 0 asks for one on each physical core. */
export const threadsOf = (threads: number): number => (threads === 0 ? physicalCores() : threads)

/** The device that a setting stands for. */
export function deviceOf(name: string): 'cpu' {
  if (name === 'auto' || name === 'cpu') return 'cpu'
  throw new UnslothError('USAGE', `device ${name} is not available in this build.`, { hint: 'Use cpu or auto.' })
}
