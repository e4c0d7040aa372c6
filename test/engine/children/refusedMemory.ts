/**
 * refusedMemory DIR MARGIN ATTEMPTS: works on a run whose process, once the run is planned, may take only MARGIN bytes more; so in the
 * first ATTEMPTS attempts. Prints what became of it.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { describeError } from '#shared/errors.ts'
import { executeRun } from '../../../engine/cli/runLauncher.ts'

const [dir, margin, attempts] = process.argv.slice(2)
const size = (): number => Number(/^VmSize:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024
const limit = (bytes: number | 'unlimited') => execFileSync('prlimit', ['--pid', String(process.pid), `--as=${bytes}:`])

let prepared = 0
const warnings: string[] = []
const ending = await executeRun(dir!, {
  onPrepared: () => limit(++prepared <= Number(attempts) ? size() + Number(margin) : 'unlimited'),
  onWarning: (message) => warnings.push(message),
}).catch((error: unknown) => describeError(error))
console.log(JSON.stringify({ ending, prepared, warnings }))
