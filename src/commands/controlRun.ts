import { rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { withRun } from '../../engine/run/controlClient.ts'
import { runFiles } from '../../engine/run/runFiles.ts'
import { fileWriteError } from '../../engine/run/files.ts'
import { RunReader, type RunView } from '../../engine/run/runReader.ts'
import type { Services } from '../services.ts'
import { choose, pickRun, runChoice } from './pick.ts'

const noneLive = (): string => vscode.l10n.t('No run is working now.')

/** Stops a run at once or after saving; asks which when `how` does not say. */
export async function stopRun(services: Services, argument: unknown, how: 'now' | 'save' | undefined): Promise<void> {
  const view = await pickRun(services, argument, {
    title: vscode.l10n.t('Stop'),
    accepts: ({ alive }) => alive,
    none: noneLive(),
  })
  const chosen = how === 'now' || how === 'save' ? how : await askHow(view)
  await withRun(view.dir, (run) => run.stop({ save: chosen === 'save' }))
}

async function askHow({ status }: RunView): Promise<'now' | 'save'> {
  return (
    await choose(
      [
        {
          label: vscode.l10n.t('$(save) Save and stop'),
          description: vscode.l10n.t('writes a checkpoint and the result first'),
          how: 'save' as const,
        },
        {
          label: vscode.l10n.t('$(debug-stop) Stop now'),
          description: vscode.l10n.t('keeps what has been saved so far'),
          how: 'now' as const,
        },
      ],
      {
        title: vscode.l10n.t('Stop {0}', status.name),
        placeHolder: vscode.l10n.t('Step {0} of {1}', status.step, status.totalSteps ?? '?'),
      },
    )
  ).how
}

/** Writes a checkpoint and frees the device; the process waits. */
export async function pauseRun(services: Services, argument: unknown): Promise<void> {
  const view = await pickRun(services, argument, {
    title: vscode.l10n.t('Pause'),
    accepts: ({ alive, state }) => alive && state !== 'paused',
    none: noneLive(),
  })
  await withRun(view.dir, (run) => run.pause())
}

export async function continueRun(services: Services, argument: unknown): Promise<void> {
  const view = await pickRun(services, argument, {
    title: vscode.l10n.t('Continue'),
    accepts: ({ alive, state }) => alive && state === 'paused',
    none: vscode.l10n.t('No run is paused.'),
  })
  await withRun(view.dir, (run) => run.resume())
}

/** Shows two or more runs in one panel, and how the recipes of the first two differ in the editor's own comparison. */
export async function compareRuns(services: Services, argument: unknown, selected: unknown): Promise<void> {
  const dirs = await pickSeveral(services, argument, selected)
  services.panels.open(dirs[0]!, dirs.slice(1))
  await compareRecipes(dirs[0]!, dirs[1]!)
}

/** The frozen recipes of two runs side by side. */
export async function compareRecipes(left: string, right: string): Promise<void> {
  const recipe = (dir: string): vscode.Uri => vscode.Uri.file(join(dir, runFiles.recipe))
  await vscode.commands.executeCommand('vscode.diff', recipe(left), recipe(right), `${basename(left)} ↔ ${basename(right)}`, {
    preview: false,
  })
}

async function pickSeveral({ runs }: Services, argument: unknown, selected: unknown): Promise<string[]> {
  const named = (Array.isArray(selected) ? selected : [argument]).flatMap((node: unknown) => {
    const path = typeof node === 'string' ? node : (node as { path?: unknown } | null | undefined)?.path
    return typeof path === 'string' ? [path] : []
  })
  if (named.length > 1) return named
  const first = named[0]
  const others = runs.views.filter(({ dir }) => dir !== first)
  if (others.length < (first === undefined ? 2 : 1))
    throw new UnslothError('USAGE', vscode.l10n.t('There are not two runs to compare.'))
  const picked = await vscode.window.showQuickPick(others.map(runChoice), {
    title: vscode.l10n.t('Compare Runs'),
    canPickMany: true,
    matchOnDescription: true,
    placeHolder:
      first === undefined ? vscode.l10n.t('Choose two runs or more') : vscode.l10n.t('Compare {0} with', basename(first)),
  })
  const dirs = [...(first === undefined ? [] : [first]), ...(picked ?? []).map(({ view }) => view.dir)]
  if (picked === undefined) throw new vscode.CancellationError()
  if (dirs.length < 2) throw new UnslothError('USAGE', vscode.l10n.t('Choose two runs or more to compare.'))
  return dirs
}

/** Removes a run's folder after a question; a living run is not removed. */
export async function deleteRun(services: Services, argument: unknown): Promise<void> {
  const view = await pickRun(services, argument, {
    title: vscode.l10n.t('Delete Run'),
    accepts: ({ alive }) => !alive,
    none: vscode.l10n.t('There is no run to delete.'),
  })
  if (view.alive) throw new UnslothError('RUN_BUSY', `${view.status.name} is working.`, { hint: 'Stop it first.' })
  const remove = vscode.l10n.t('Delete')
  const outputs = view.status.outputs.map(({ kind }) => kind).join(', ')
  const chosen = await vscode.window.showWarningMessage(
    vscode.l10n.t('Delete the run {0}?', view.status.name),
    { modal: true, detail: outputs === '' ? view.dir : vscode.l10n.t('{0}\n\nIts results go with it: {1}.', view.dir, outputs) },
    remove,
  )
  if (chosen !== remove) return
  // It may have been resumed while the question stood there.
  if (await new RunReader(view.dir).isAlive())
    throw new UnslothError('RUN_BUSY', `${view.status.name} is working again.`, { hint: 'Stop it first.' })
  try {
    await rm(view.dir, { recursive: true })
  } catch (error) {
    throw fileWriteError(error, view.dir)
  } finally {
    await services.runs.refresh()
  }
}
