import { describeError } from '#shared/errors.ts'
import type { CommandName } from '../graph/commands.ts'
import { relativeError } from '../verify/relativeError.ts'
import { opTable } from './opTable.ts'
import { precisionPlace, runOp, type OpDevice } from './runOp.ts'

export interface OpResult {
  readonly command: CommandName | 'load'
  readonly label: string
  readonly numbers: 'f32' | 'tf32' | 'bf16' | 'f16'
  /** ‖GPU − processor‖ / ‖processor‖ of the worst output. */
  readonly error: number
  readonly allowed: number
  readonly passed: boolean
  readonly message?: string
}

/** fp32 sums in another order; one rounding of the result, and of a few values on the way, to 8 or 11 bits; of operands to 11. */
const allowed = { f32: 1e-5, tf32: 1e-3, bf16: 6e-3, f16: 1e-3 } as const

/** Every case of the table (with TF32, those it is for) on the processor in fp32 and on the GPU in the given types, on the same numbers. */
export async function compareOps(cpu: OpDevice, gpu: OpDevice, filter: readonly string[] = []): Promise<OpResult[]> {
  const results: OpResult[] = []
  const numbers = gpu.tf32 === true ? ('tf32' as const) : gpu.activation
  const wanted = (command: CommandName) =>
    (filter.length === 0 || filter.includes(command)) && (numbers !== 'tf32' || precisionPlace[command] !== undefined)
  for (const op of opTable().filter(({ command }) => wanted(command))) {
    const base = { command: op.command, label: op.label, numbers, allowed: allowed[numbers] }
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
