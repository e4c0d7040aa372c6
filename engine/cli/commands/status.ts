import { formatDuration } from '#shared/units.ts'
import { RunDirectory } from '../../run/runDirectory.ts'
import { listRuns, RunReader, type RunView } from '../../run/runReader.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { shownPath } from '../progressView.ts'

/** Shows one run, or all runs of a folder. */
export async function statusCommand({ positionals, flags }: CommandArgs<'status'>): Promise<number> {
  const dir = positionals[0] ?? 'outputs'
  const views = RunDirectory.isRun(dir) ? [await RunReader.open(dir).view()] : await listRuns(dir)
  if (flags.json) console.log(JSON.stringify(views, null, 2))
  else if (views.length === 0) console.log(`no runs in ${dir}`)
  else for (const view of views) console.log(describe(view))
  return 0
}

function describe({ dir, status, state, resumable, checkpoint }: RunView): string {
  const steps = status.totalSteps === null ? '' : `  step ${status.step}/${status.totalSteps}`
  const loss = status.loss === null ? '' : `  loss ${status.loss.toFixed(4)}`
  const eta = status.etaSeconds === null ? '' : `  ${formatDuration(status.etaSeconds)} left`
  const more =
    status.error !== null
      ? `\n  ${status.error.message}`
      : state === 'interrupted' && resumable
        ? `\n  \`unsloth resume ${shownPath(dir)}\` goes on from step ${checkpoint?.step ?? 0}`
        : ''
  return `${shownPath(dir)}  ${state}${status.detail === null ? '' : ` (${status.detail})`}${steps}${loss}${eta}${more}`
}
