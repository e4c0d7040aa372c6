import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { UnslothTasks } from '../engine/tasks.ts'
import { serverMessages } from '../language/commands.ts'
import type { Services } from '../services.ts'

/** Measures in a terminal how fast this machine trains; from then on recipes tell how long they take. Resolves at its end. */
export async function measureSpeed({ locate, recipeHelp }: Services): Promise<void> {
  // Says why when the engine may not run here.
  locate()
  const [folder] = vscode.workspace.workspaceFolders ?? []
  const task = folder === undefined ? undefined : new UnslothTasks(locate).benchTask(folder)
  if (task === undefined) throw new UnslothError('USAGE', vscode.l10n.t('Open a folder first.'))
  const execution = await vscode.tasks.executeTask(task)
  await new Promise<void>((resolve) => {
    const ended = vscode.tasks.onDidEndTask((event) => {
      if (event.execution !== execution) return
      ended.dispose()
      resolve()
    })
  })
  await (await recipeHelp()).sendNotification(serverMessages.runsChanged, {})
}
