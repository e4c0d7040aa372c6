import * as vscode from 'vscode'
import type { PanelAction } from '#shared/panelProtocol.ts'
import type { TrainingActions } from '../training/panelSession.ts'
import type { Services } from '../services.ts'
import { compareRecipes, continueRun, pauseRun, stopRun } from './controlRun.ts'
import { resumeRun } from './fineTune.ts'
import { runChoice } from './pick.ts'
import { runCommand } from '../editor.ts'
import { UnslothError } from '#shared/errors.ts'

type Perform = (services: Services, dir: string, shown: readonly string[]) => Promise<unknown>

/** The panel's buttons. Those that only open something are commands; the others let the panel show what went wrong. */
const performs: Readonly<Record<PanelAction, Perform>> = {
  stopNow: (services, dir) => stopRun(services, dir, 'now'),
  stopAndSave: (services, dir) => stopRun(services, dir, 'save'),
  pause: pauseRun,
  resume: (services, dir) => (services.runs.get(dir)?.alive === true ? continueRun(services, dir) : resumeRun(services, dir)),
  openRecipe: (_, dir) => Promise.resolve(runCommand('unsloth.openRunRecipe', dir)),
  openLog: (_, dir) => Promise.resolve(runCommand('unsloth.openRunLog', dir)),
  reveal: (_, dir) => Promise.resolve(runCommand('unsloth.revealRun', dir)),
  // These ask and take their time; the button comes back at once.
  generate: (_, dir) => Promise.resolve(void runCommand('unsloth.generate', dir)),
  merge: (_, dir) => Promise.resolve(void runCommand('unsloth.merge', dir)),
  compareRecipes: (_, dir, shown) => {
    const other = shown.find((run) => run !== dir)
    return other === undefined
      ? Promise.reject(new UnslothError('USAGE', vscode.l10n.t('Lay another run over this one first.')))
      : compareRecipes(dir, other)
  },
}

/** What the training panel asks of its host; `services` is asked for late, because the two know each other. */
export function panelButtons(services: () => Services): TrainingActions {
  return {
    async perform(action, dir, shown) {
      await performs[action](services(), dir, shown)
    },
    async pickRuns(shown) {
      const others = services().runs.views.filter(({ dir }) => !shown.includes(dir))
      const picked = await vscode.window.showQuickPick(others.map(runChoice), {
        title: vscode.l10n.t('Lay Runs Over'),
        canPickMany: true,
        matchOnDescription: true,
      })
      return (picked ?? []).map(({ view }) => view.dir)
    },
  }
}
