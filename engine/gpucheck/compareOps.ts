import { describeError } from '#shared/errors.ts'
import type { CommandName } from '../graph/commands.ts'
import { relativeError } from '../verify/relativeError.ts'
import { opTable } from './opTable.ts'
import { runOp, type OpDevice } from './runOp.ts'

export interface OpResult {
  readonly command: CommandName | 'load'
  readonly label: string
  readonly numbers: 'f32' | 'bf16' | 'f16'
  /** ‖GPU − processor‖ / ‖processor‖ of the worst output. */
  readonly error: number
  readonly allowed: number
  readonly passed: boolean
  readonly message?: string
}

/** fp32 sums in another order; one rounding of the result, and of a few values on the way, to 8 or 11 bits. */
const allowed = { f32: 1e-5, bf16: 6e-3, f16: 1e-3 } as const

/** Every case of the table on the processor in fp32 and on the GPU in the given types, on the same numbers. */
export async function compareOps(cpu: OpDevice, gpu: OpDevice, filter: readonly string[] = []): Promise<OpResult[]> {
  const results: OpResult[] = []
  for (const op of opTable().filter(({ command }) => filter.length === 0 || filter.includes(command))) {
    const base = { command: op.command, label: op.label, numbers: gpu.activation, allowed: allowed[gpu.activation] }
    try {
      const expected = await runOp(cpu, op, gpu.activation)
      const got = await runOp(gpu, op, gpu.activation)
      const error = expected.reduce((worst, output, i) => Math.max(worst, relativeError(got[i]!, output)), 0)
      results.push({ ...base, error, passed: error <= base.allowed })
    } catch (error) {
      results.push({ ...base, error: NaN, passed: false, message: describeError(error) })
    }
  }
  return results
}
