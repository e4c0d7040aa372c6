import assert from 'node:assert/strict'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import * as vscode from 'vscode'
import type { ExtensionApi } from '../../../src/extension.ts'
import { activated, answerQuestions, catchNotifications, eventually, textOf } from './support.ts'

const root = (at: number): string => vscode.workspace.workspaceFolders![at]!.uri.fsPath

describe('a workspace of several folders', () => {
  let api: ExtensionApi
  let notifications: ReturnType<typeof catchNotifications>
  before(async () => {
    api = await activated()
    notifications = catchNotifications()
    assert.equal(vscode.workspace.workspaceFolders!.length, 2)
  })
  after(() => notifications.restore())
  afterEach(() => {
    assert.deepEqual(
      notifications.told
        .splice(0)
        .filter(({ kind }) => kind === 'error')
        .map(({ text }) => text),
      [],
    )
  })

  const datasets = async (): Promise<string[]> =>
    (await api.services.library.datasets()).filter(({ origin }) => origin === 'workspace').map(({ name }) => name)

  it('lists what is in each, by the name of its folder', async () => {
    assert.deepEqual(
      (await datasets()).filter((name) => name.endsWith('fables.jsonl')),
      ['one/fables.jsonl', 'two/fables.jsonl'],
    )
    const models = await api.services.library.models()
    assert.ok(
      ['one/models/tiny', 'two/models/tiny'].every((name) => models.some((model) => model.name === name)),
      models.map(({ name }) => name).join(),
    )
  })

  it('asks in which folder a recipe is to stand, and offers what stands beside it', async () => {
    const questions = answerQuestions(['two', 'two/models/tiny', 'two/fables.jsonl', 'LoRA'])
    try {
      const path = await vscode.commands.executeCommand<string>('unsloth.newRecipe')
      assert.equal(dirname(path), root(1))
      assert.match(textOf(path), /model: \.\/models\/tiny[\s\S]*local_dataset: \.\/fables\.jsonl/)
      const document = await vscode.workspace.openTextDocument(path)
      const at = document.positionAt(document.getText().indexOf('./models'))
      await api.languageClient()
      const labels = await eventually('the models', async () => {
        const { items } = await vscode.commands.executeCommand<vscode.CompletionList>(
          'vscode.executeCompletionItemProvider',
          document.uri,
          at,
        )
        const found = items.map(({ label }) => (typeof label === 'string' ? label : label.label))
        return found.some((label) => label.includes('models/tiny')) && found
      })
      assert.ok(labels.includes('./models/tiny') && labels.includes('../one/models/tiny'), labels.join(' '))
      await eventually('no mistakes', () => vscode.languages.getDiagnostics(document.uri).length === 0)
    } finally {
      questions.restore()
    }
  })

  it('puts a run beside its recipe and offers the recipes of all folders as tasks', async () => {
    const dir = await vscode.commands.executeCommand<string>('unsloth.fineTune', join(root(1), 'finetune.yaml'))
    assert.ok(dir.startsWith(join(root(1), 'outputs')), dir)
    const found = await eventually('the run in the tree', async () =>
      (await api.trees.runs.getChildren()).find(({ path }) => path === dir),
    )
    assert.equal(found.kind, 'run')
    await eventually('the end', () => api.services.runs.get(dir)?.state === 'finished')
    const tasks = (await vscode.tasks.fetchTasks({ type: 'unsloth' })).map(
      ({ scope, name }) => `${(scope as vscode.WorkspaceFolder).name} ${name}`,
    )
    assert.ok(
      ['one finetune finetune.yaml', 'two finetune finetune.yaml'].every((task) => tasks.includes(task)),
      tasks.join('\n'),
    )
  })

  it('takes a file that is dropped into Datasets, into the folder that is chosen', async () => {
    const outside = join(dirname(root(0)), 'dropped.jsonl')
    writeFileSync(outside, '{"text": "dropped"}\n')
    const drop = async (data: vscode.DataTransfer): Promise<void> => {
      const questions = answerQuestions(['two'])
      try {
        await api.trees.datasetDrops.handleDrop!(undefined, data, new vscode.CancellationTokenSource().token)
      } finally {
        questions.restore()
      }
    }
    const named = new vscode.DataTransfer()
    named.set('text/uri-list', new vscode.DataTransferItem(vscode.Uri.file(outside).toString()))
    await drop(named)
    assert.equal(textOf(join(root(1), 'dropped.jsonl')), '{"text": "dropped"}\n')
    // A file of another machine has a content and no place.
    const item = new vscode.DataTransferItem('')
    item.asFile = () => ({ name: 'far.jsonl', data: () => Promise.resolve(Buffer.from('{"text": "far"}\n')) })
    const far = new vscode.DataTransfer()
    far.set('files', item)
    await drop(far)
    await eventually('both in the tree', async () => {
      const names = await datasets()
      return names.includes('two/dropped.jsonl') && names.includes('two/far.jsonl')
    })
    // Neither another kind of file nor one that is there already.
    await drop(named)
    named.set('text/uri-list', new vscode.DataTransferItem(vscode.Uri.file('/tmp/picture.png').toString()))
    await drop(named)
    assert.deepEqual(
      notifications.told
        .splice(0)
        .filter(({ kind }) => kind === 'error')
        .map(({ text }) => text.replace(/^.*\//, '').slice(0, 28)),
      ['dropped.jsonl is there alrea', 'picture.png is not a data se'],
    )
  })

  it('notices a folder that is added and one that goes', async () => {
    const third = join(dirname(root(0)), 'three')
    mkdirSync(third)
    writeFileSync(join(third, 'third.jsonl'), '{"text": "three"}\n')
    vscode.workspace.updateWorkspaceFolders(2, 0, { uri: vscode.Uri.file(third) })
    await eventually('its data', async () => (await datasets()).includes('three/third.jsonl'))
    vscode.workspace.updateWorkspaceFolders(2, 1)
    await eventually('that they are gone', async () => !(await datasets()).some((name) => name.endsWith('third.jsonl')))
    assert.ok(existsSync(third))
  })
})
