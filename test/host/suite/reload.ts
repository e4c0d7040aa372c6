import assert from 'node:assert/strict'
import * as vscode from 'vscode'
import { activated, eventually, inWorkspace } from './support.ts'

describe('before the window is loaded again', () => {
  it('a long run works and its panel is open', async () => {
    const { services, panels } = await activated()
    // Panels of the window before have come back; this one is about a new one.
    await vscode.commands.executeCommand('workbench.action.closeAllEditors')
    let updates = 0
    const posted = panels.onDidPost(({ message }) => {
      if (message.type === 'update' && message.data.length > 0) updates++
    })
    const dir = await vscode.commands.executeCommand<string | undefined>('unsloth.fineTune', inWorkspace('long.finetune.yaml'))
    assert.ok(dir)
    await eventually('a checkpoint', () => (services.runs.get(dir)?.checkpoint?.step ?? 0) > 0)
    // The page keeps what it shows when it has drawn; after that it can come back.
    await eventually('the curve', () => updates > 8)
    posted.dispose()
    await eventually('the page', () => panels.panels.some(({ panel, session }) => panel.visible && session.runs.includes(dir)))
  })
})
