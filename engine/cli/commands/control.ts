import { withRun } from '../../run/controlClient.ts'
import type { CommandArgs } from '../commandArgs.ts'

/** Asks a living run to stop, now or after saving. */
export async function stopCommand({ positionals, flags }: CommandArgs<'stop'>): Promise<number> {
  const result = await withRun(positionals[0]!, (run) => run.stop({ save: flags.save }))
  console.log(
    flags.json
      ? JSON.stringify(result)
      : flags.save
        ? `stopping after step ${result.step}, saving first`
        : `stopping at step ${result.step}`,
  )
  return 0
}

/** Asks a living run to write a checkpoint and free its device. */
export async function pauseCommand({ positionals, flags }: CommandArgs<'pause'>): Promise<number> {
  const result = await withRun(positionals[0]!, (run) => run.pause())
  console.log(
    flags.json ? JSON.stringify(result) : `pausing after step ${result.step}; \`unsloth resume ${positionals[0]!}\` goes on`,
  )
  return 0
}
