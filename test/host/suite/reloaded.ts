import assert from 'node:assert/strict'
import * as vscode from 'vscode'
import type { ToWebview } from '#shared/panelProtocol.ts'
import type { RunView } from '../../../engine/run/runReader.ts'
import type { ExtensionApi } from '../../../src/extension.ts'
import { activated, catchNotifications, eventually } from './support.ts'

describe('after the window was loaded again', () => {
  let api: ExtensionApi
  let notifications: ReturnType<typeof catchNotifications>
  let run: RunView

  before(async () => {
    notifications = catchNotifications()
    api = await activated()
    run = await eventually('the run that goes on', () => api.services.runs.live[0])
  })
  after(() => notifications.restore())

  it('the run goes on and is shown', async () => {
    assert.equal(run.alive, true)
    const { step } = run.status
    await eventually('further steps', () => (api.services.runs.get(run.dir)?.status.step ?? 0) > step)
    await eventually('the status bar', () => /^\$\(loading~spin\) [\d,]+\/[\d,]+ · loss /.test(api.statusBar.text))
  })

  it('the panel is there again with all its data', async () => {
    const panel = await eventually('the panel', () => api.panels.panels.find(({ session }) => session.runs.includes(run.dir)))
    await eventually('that it is shown', () => panel.panel.visible)
    const messages: ToWebview[] = []
    const posted = api.panels.onDidPost((event) => event.panel === panel && messages.push(event.message))
    try {
      // The page asks for everything when it is shown anew.
      await vscode.commands.executeCommand('workbench.action.webview.reloadWebviewAction')
      const hydrate = await eventually('the data', () =>
        messages.find((message) => message.type === 'hydrate' && message.data.length > 0),
      )
      assert.ok(hydrate.type === 'hydrate' && hydrate.runs.some(({ id }) => id === run.dir))
    } finally {
      posted.dispose()
    }
  })

  it('a killed run is told as interrupted, with a way to go on', async () => {
    const pid = api.services.runs.get(run.dir)!.heartbeat!.pid
    process.kill(pid, 'SIGKILL')
    await eventually('the interruption', () => api.services.runs.get(run.dir)?.state === 'interrupted')
    const told = await eventually('the notification', () => notifications.told.find(({ text }) => text.includes('interrupted')))
    assert.deepEqual(told.actions, ['Resume'])
    const before = api.services.runs.get(run.dir)!.checkpoint!.step
    told.answer('Resume')
    await eventually('the run', () => api.services.runs.get(run.dir)?.alive === true)
    await eventually('steps beyond the checkpoint', () => (api.services.runs.get(run.dir)?.status.step ?? 0) > before)
    await vscode.commands.executeCommand('unsloth.stopRun', run.dir, 'now')
    await eventually('the stop', () => api.services.runs.get(run.dir)?.state === 'stopped')
  })
})
