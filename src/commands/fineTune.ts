import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { hasEnded } from '#shared/runState.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import { readSetting } from '../editor.ts'
import { launch, startRun } from '../engine/startRun.ts'
import type { Services } from '../services.ts'
import { newRecipe } from './newRecipe.ts'
import { pickRecipe, pickRun } from './pick.ts'

/** Milliseconds that the process of an ended run may take to go. */
const patience = 10_000

/** Starts a recipe as a process of its own and shows it. Without a recipe one is written first, and opened. */
export async function fineTune(services: Services, argument: unknown): Promise<string | undefined> {
  const recipe = await pickRecipe(argument, vscode.l10n.t('Fine-tune'))
  if (recipe === undefined) {
    await newRecipe(services, undefined)
    return undefined
  }
  const location = services.locate()
  const scope = vscode.Uri.file(recipe)
  const defaults = { device: readSetting('unsloth.device', scope), threads: readSetting('unsloth.threads', scope) }
  try {
    const secrets = await services.hubToken.environment()
    const run = await withProgress(vscode.l10n.t('Starting the run'), () => startRun(recipe, defaults, location, secrets))
    for (const warning of run.warnings) services.log.warn(warning)
    await shown(services, run.dir)
    return run.dir
  } catch (error) {
    services.problems.show(error, { recipe })
    void services.runs.refresh()
    return undefined
  }
}

/** Starts the process of a run again: from its newest checkpoint, or from a chosen one. */
export async function resumeRun(services: Services, argument: unknown): Promise<string | undefined> {
  const view = await settled(
    services,
    await pickRun(services, argument, {
      title: vscode.l10n.t('Resume Run from Checkpoint'),
      accepts: ({ resumable, alive, state }) => resumable || (alive && state === 'paused'),
      none: vscode.l10n.t('No run can be resumed: none was interrupted, stopped or paused after a checkpoint.'),
    }),
  )
  if (view.alive && view.state === 'paused') {
    const { withRun } = await import('../../engine/run/controlClient.ts')
    await withRun(view.dir, (run) => run.resume())
    return view.dir
  }
  if (view.alive)
    throw new UnslothError('RUN_BUSY', `${view.status.name} is ${view.state}.`, {
      hint: 'Only a paused, stopped or interrupted run can be resumed.',
    })
  if (view.state === 'finished')
    throw new UnslothError('RUN_INVALID', `${view.status.name} is finished.`, {
      hint: 'Start a new run; lora.init_adapter goes on from its adapter.',
    })
  const location = services.locate()
  const secrets = await services.hubToken.environment()
  await withProgress(vscode.l10n.t('Resuming {0}', view.status.name), () => launch(view.dir, location, secrets))
  await shown(services, view.dir)
  return view.dir
}

/** A run that has just ended has a process for a moment more: it is waited for. */
async function settled({ runs }: Services, view: RunView): Promise<RunView> {
  let now = view
  for (const until = Date.now() + patience; now.alive && hasEnded(now.state) && Date.now() < until;) {
    await new Promise((resolve) => setTimeout(resolve, 100))
    now = (await runs.follow(now.dir)) ?? now
  }
  return now
}

async function shown({ runs, panels }: Services, dir: string): Promise<void> {
  await runs.follow(dir)
  if (readSetting('unsloth.openPanelOnStart', vscode.Uri.file(dir))) panels.open(dir)
}

/** A progress in the status bar; starting takes a moment, not a dialog. */
export function withProgress<T>(title: string, work: () => Promise<T>): Promise<T> {
  return Promise.resolve(vscode.window.withProgress({ location: vscode.ProgressLocation.Window, title }, work))
}
