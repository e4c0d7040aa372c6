import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import * as vscode from 'vscode'
import type { ExtensionApi } from '../../../src/extension.ts'
import { activated, answerQuestions, catchNotifications, eventually, inWorkspace, textOf } from './support.ts'

const secret = 'hf_theSecretOfThisTest0'

describe('the Hugging Face token', () => {
  let api: ExtensionApi
  before(async () => {
    api = await activated()
  })

  const answered = async (text: string): Promise<void> => {
    const questions = answerQuestions([text])
    try {
      await vscode.commands.executeCommand('unsloth.setHubToken')
    } finally {
      questions.restore()
    }
  }

  it('reaches the processes that train, and nothing that is written', async () => {
    await answered(secret)
    assert.deepEqual(await api.services.hubToken.environment(), { HF_TOKEN: secret })
    const dir = await vscode.commands.executeCommand<string>('unsloth.fineTune', inWorkspace('long.finetune.yaml'))
    const pid = await eventually(
      'the run',
      () => (api.services.runs.get(dir)?.status.step ?? 0) > 0 && api.services.runs.get(dir)?.heartbeat?.pid,
    )
    if (process.platform === 'linux') {
      assert.ok(readFileSync(`/proc/${pid}/environ`, 'utf8').includes(`HF_TOKEN=${secret}\0`))
      assert.ok(!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(secret))
    }
    await vscode.commands.executeCommand('unsloth.stopRun', dir, 'now')
    await eventually('the stop', () => api.services.runs.get(dir)?.state === 'stopped')
    const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
    assert.ok(files.length > 4)
    assert.deepEqual(
      files.filter((entry) => readFileSync(join(entry.parentPath, entry.name)).includes(secret)).map(({ name }) => name),
      [],
    )
  })

  it('is forgotten with an empty line', async () => {
    await answered(' ')
    assert.deepEqual(await api.services.hubToken.environment(), {})
  })
})

describe('recipes of other programs', () => {
  it('are converted beside themselves', async () => {
    const notifications = catchNotifications()
    try {
      const file = inWorkspace('axolotl.yml')
      await vscode.workspace.fs.writeFile(
        vscode.Uri.file(file),
        Buffer.from(
          'base_model: ./models/tiny\ndatasets:\n  - path: ./fables.jsonl\n    type: completion\nadapter: lora\nlora_r: 8\nflash_attention: true\nwandb_project: x\n',
        ),
      )
      const recipe = await vscode.commands.executeCommand<string>('unsloth.migrateRecipe', vscode.Uri.file(file))
      assert.equal(recipe, inWorkspace('axolotl.finetune.yaml'))
      assert.match(textOf(recipe), /model: \.\/models\/tiny[\s\S]*lora_r: 8/)
      await eventually('the recipe', () => vscode.window.activeTextEditor?.document.uri.fsPath === recipe)
      await vscode.commands.executeCommand('unsloth.migrateRecipe', inWorkspace('finetune.yaml'))
      const told = await eventually('the refusal', () => notifications.told.find(({ kind }) => kind === 'error'))
      assert.match(told.text, /no recipe of Axolotl/)
    } finally {
      notifications.restore()
    }
  })
})
