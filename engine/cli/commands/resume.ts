import { UnslothError } from '#shared/errors.ts'
import { engineEntry } from '../../projectRoot.ts'
import { withRun } from '../../run/controlClient.ts'
import { launchRun } from '../../run/detached.ts'
import { RunReader } from '../../run/runReader.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { shownPath } from '../progressView.ts'
import { foreground } from './finetune.ts'

/** Goes on with a run: wakes a paused process, or starts again from the newest checkpoint (from the beginning without one). */
export async function resumeCommand({ positionals, flags }: CommandArgs<'resume'>): Promise<number> {
  const dir = positionals[0]!
  const view = await RunReader.open(dir).view()
  if (view.alive && view.state === 'paused') {
    const result = await withRun(dir, (run) => run.resume())
    console.log(flags.json ? JSON.stringify(result) : `going on from step ${result.step}`)
    return 0
  }
  if (view.alive)
    throw new UnslothError('RUN_BUSY', `${dir}: the run is ${view.state}.`, {
      hint: 'Only a paused, stopped, failed or interrupted run can be resumed.',
    })
  if (view.state === 'finished')
    throw new UnslothError('RUN_INVALID', `${dir}: the run is finished.`, {
      hint: 'Start a new run; lora.init_adapter goes on from its adapter.',
    })
  if (!flags.detach) return foreground(dir, flags.json)
  const { pid } = await launchRun(dir, { entry: engineEntry() })
  console.log(flags.json ? JSON.stringify({ dir, pid }) : `resumed ${shownPath(dir)} (process ${pid})`)
  return 0
}
