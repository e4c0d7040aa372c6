import type { Command } from './graph.ts'
import type { Target } from './target.ts'

/** Scratch that the processor's matrix kernels hold: per thread, and once for all. Mirrors kernels/cpu/threadPool.h. */
const processorScratch = (threads: number): number => threads * 2 ** 22 + 2 ** 24

/** What every kernel of a GPU may count on: partial sums of split products, row numbers sorted for a scatter, a library's workspace. */
const leastGpuScratch = 64 * 2 ** 20

/** dq of an attention summed in fp32 over blocks of keys, and dk and dv of the heads that share a key head. */
function attentionScratch({ name, tensors }: Command): number {
  if (name !== 'attentionGrad') return 0
  const [dq, dk] = tensors
  return 4 * dq!.storage.rows * (dq!.cols + 2 * dk!.cols) + 2 ** 20
}

/** Bytes that the kernels of these commands share beside the arenas. `threads`: of the processor. */
export const scratchBytes = ({ kind }: Pick<Target, 'kind'>, commands: readonly Command[], threads: number): number =>
  kind === 'cpu'
    ? processorScratch(threads)
    : commands.reduce((most, command) => Math.max(most, attentionScratch(command)), leastGpuScratch)
