import assert from 'node:assert/strict'
import * as vscode from 'vscode'
import { activated, catchNotifications, eventually, inWorkspace, openRecipe } from './support.ts'

describe('a workspace that is not trusted', () => {
  it('gets help with recipes', async () => {
    const api = await activated()
    assert.equal(vscode.workspace.isTrusted, false)
    const document = await openRecipe('finetune.yaml')
    await eventually('completions', async () => {
      const position = document.positionAt(document.getText().indexOf('max_steps'))
      const { items } = await vscode.commands.executeCommand<vscode.CompletionList>(
        'vscode.executeCompletionItemProvider',
        document.uri,
        position,
      )
      return items.length > 10
    })
    assert.ok(await api.languageClient())
  })

  it('runs nothing and says why', async () => {
    const api = await activated()
    const notifications = catchNotifications()
    try {
      assert.equal(await vscode.commands.executeCommand('unsloth.fineTune', inWorkspace('finetune.yaml')), undefined)
      const told = await eventually('the notification', () => notifications.told[0])
      assert.match(told.text, /not trusted/)
      assert.equal(api.services.engine.state.kind === 'running', false)
      assert.equal(api.services.runs.views.length, 0)
    } finally {
      notifications.restore()
    }
  })
})
