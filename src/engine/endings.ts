import * as vscode from 'vscode'
import { formatLoss } from '#shared/metrics.ts'
import { formatDuration } from '#shared/units.ts'
import { readSetting, runCommand } from '../editor.ts'
import type { Problems } from './problems.ts'
import type { RunEnding } from './runRegistry.ts'

/** Tells how a run ended, as the settings wish: done, failed, or lost. A stop that the user asked for is no news. */
export function tellEnding({ view }: RunEnding, problems: Problems, log: vscode.LogOutputChannel): void {
  const wish = readSetting('unsloth.notifications')
  log.info(`${view.dir}: ${view.state}`)
  if (wish === 'none') return
  if (view.state === 'failed') problems.showFailedRun(view)
  else if (view.state === 'interrupted') problems.showInterruptedRun(view)
  else if (view.state === 'finished' && wish === 'all') void tellFinished(view.dir, summary(view), log)
}

function summary({ status }: RunEnding['view']): string {
  const { name, loss, evalLoss, startedAt, endedAt } = status
  const seconds = startedAt === null || endedAt === null ? undefined : (Date.parse(endedAt) - Date.parse(startedAt)) / 1000
  const facts = [
    seconds === undefined ? '' : vscode.l10n.t('in {0}', formatDuration(seconds)),
    loss === null ? '' : `loss ${formatLoss(loss)}`,
    evalLoss === null ? '' : `eval loss ${formatLoss(evalLoss)}`,
  ]
    .filter((fact) => fact !== '')
    .join(', ')
  return facts === '' ? vscode.l10n.t('{0} has finished.', name) : vscode.l10n.t('{0} has finished: {1}.', name, facts)
}

async function tellFinished(dir: string, text: string, log: vscode.LogOutputChannel): Promise<void> {
  const generate = vscode.l10n.t('Generate')
  const merge = vscode.l10n.t('Merge')
  const reveal = vscode.l10n.t('Reveal')
  try {
    const chosen = await vscode.window.showInformationMessage(text, generate, merge, reveal)
    if (chosen === generate) await runCommand('unsloth.generate', dir)
    if (chosen === merge) await runCommand('unsloth.merge', dir)
    if (chosen === reveal) await runCommand('unsloth.revealRun', dir)
  } catch (error) {
    log.error(String(error))
  }
}
