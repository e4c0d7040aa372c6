import type { CommandArgs } from '../commandArgs.ts'
import { executeRun } from '../runLauncher.ts'

/** The detached role of the program: works on a run directory, says nothing but what goes to its log. */
export async function runCommand({ positionals }: CommandArgs<'run'>): Promise<number> {
  await executeRun(positionals[0]!)
  return 0
}
