import { writeSafetensors } from '../../io/safetensorsWriter.ts'
import { compare, formatComparisons, type Comparison } from '../../verify/compare.ts'
import { CaseComputation } from '../../verify/compute.ts'
import { Golden, type Quantity } from '../../verify/golden.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { physicalCores } from '../../runtime/cores.ts'
import { compareQuantised } from '../../verify/quantised.ts'
import { computeSettings } from '../settings.ts'

/** Compares the engine with a reference's results; exit code 1 when anything is wrong or missing. */
export async function verifyCommand({ positionals, flags }: CommandArgs<'verify'>): Promise<number> {
  const folder = positionals[0]!
  const golden = await Golden.open(folder)
  const computation = new CaseComputation(golden, computeSettings(flags))
  await computation.run()
  const results = [
    ...(await compare(golden, computation.quantities, new Set(flags.skip ?? []), computation.target)),
    ...(await compareQuantised(golden, physicalCores())),
  ]
  if (flags.out !== undefined) await writeQuantities(flags.out, computation.quantities)
  const failed = results.filter(({ verdict }) => verdict === 'wrong' || verdict === 'missing')
  if (flags.json) console.log(JSON.stringify({ folder, passed: failed.length === 0, results: results.map(plain) }, null, 2))
  else {
    console.log(formatComparisons(results).join('\n'))
    console.log(
      failed.length === 0
        ? `${folder}: all ${results.length} quantities agree`
        : `${folder}: ${failed.length} of ${results.length} quantities do not agree`,
    )
  }
  return failed.length === 0 ? 0 : 1
}

/** JSON has no NaN. */
const plain = (result: Comparison) => ({ ...result, error: Number.isFinite(result.error) ? result.error : null })

async function writeQuantities(path: string, quantities: ReadonlyMap<string, Quantity>): Promise<void> {
  await writeSafetensors(
    path,
    [...quantities].map(([name, { shape, data }]) => {
      const [dtype, values] =
        data instanceof Int32Array ? (['I64', BigInt64Array.from(data, BigInt)] as const) : (['F32', data] as const)
      return { name, dtype, shape, data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) }
    }),
  )
}
