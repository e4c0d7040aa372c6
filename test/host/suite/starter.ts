import * as vscode from 'vscode'
import { activated, eventually, inWorkspace } from './support.ts'
import { existsSync } from 'node:fs'

/** One of two windows on a folder: it starts the run; the other one (watcher.ts) finds it and takes the lead. */
describe('a run that another window watches', () => {
  it('is controlled from either window', async () => {
    const { services, statusBar } = await activated()
    await eventually('the other window', () => existsSync(inWorkspace('watching')), 240_000)
    const dir = await vscode.commands.executeCommand<string>('unsloth.fineTune', inWorkspace('long.finetune.yaml'))
    const state = (): string | undefined => services.runs.get(dir)?.state
    await eventually('the pause by the other window', () => state() === 'paused')
    await eventually('the status bar', () => statusBar.text.includes('paused'))
    await vscode.commands.executeCommand('unsloth.continueRun', dir)
    await eventually('the stop by the other window', () => state() === 'stopped')
  })
})
