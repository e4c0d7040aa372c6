import assert from 'node:assert/strict'
import { writeFileSync } from 'node:fs'
import * as vscode from 'vscode'
import type { ToWebview } from '#shared/panelProtocol.ts'
import { activated, eventually, inWorkspace } from './support.ts'

/** The other window of starter.ts. */
describe('a run that another window started', () => {
  it('is found, shown and controlled', async () => {
    const { services, panels, trees } = await activated()
    assert.equal(services.runs.live.length, 0)
    writeFileSync(inWorkspace('watching'), '')
    const { dir } = await eventually('the run', () => services.runs.live.find(({ status }) => status.step > 3), 240_000)
    await eventually('the badge', () => trees.runsView.badge?.value === 1)
    const messages: ToWebview[] = []
    panels.onDidPost(({ message }) => messages.push(message))
    await vscode.commands.executeCommand('unsloth.openTrainingPanel', dir)
    await eventually(
      'its curve',
      () => messages.filter((message) => message.type === 'update' && message.data.length > 0).length > 2,
    )
    await vscode.commands.executeCommand('unsloth.pauseRun', dir)
    const state = (): string | undefined => services.runs.get(dir)?.state
    await eventually('the pause', () => state() === 'paused')
    await eventually('the continuation by the other window', () => state() === 'training')
    await vscode.commands.executeCommand('unsloth.stopRun', dir, 'now')
    await eventually('the stop', () => state() === 'stopped')
    await eventually('no badge', () => trees.runsView.badge === undefined)
  })
})
