import assert from 'node:assert/strict'
import * as vscode from 'vscode'
import type { PreviewAnswer, ToPreview } from '#shared/previewPage.ts'
import type { ExtensionApi } from '../../../src/extension.ts'
import { activated, answerQuestions, eventually, inWorkspace, openRecipe } from './support.ts'

describe('preview of data', () => {
  let api: ExtensionApi
  const posted: ToPreview[] = []
  before(async () => {
    api = await activated()
    api.services.previews.onDidPost((message) => posted.push(message))
  })
  beforeEach(() => {
    posted.length = 0
  })

  const answer = (check: (answer: PreviewAnswer) => boolean = () => true): Promise<PreviewAnswer> =>
    eventually('the answer', () =>
      posted.find((message) => message.type === 'answer' && check(message)),
    ) as Promise<PreviewAnswer>

  it('shows a recipe token by token, and follows what is typed', async () => {
    const document = await openRecipe('finetune.yaml')
    await vscode.commands.executeCommand('unsloth.previewData')
    const { preview, matching, diagnostics } = await answer()
    assert.deepEqual(diagnostics, [])
    assert.ok(matching > 200 && preview!.shown.length === 10)
    const [first] = preview!.shown
    assert.ok(
      first!.tokens.some(({ trained }) => trained) && first!.tokens[0]!.special && first!.file === inWorkspace('fables.jsonl'),
    )
    posted.length = 0
    const edit = new vscode.WorkspaceEdit()
    const at = document.positionAt(document.getText().indexOf('512'))
    edit.replace(document.uri, new vscode.Range(at, at.translate(0, 3)), '16')
    await vscode.workspace.applyEdit(edit)
    const { preview: cut } = await answer(({ preview: shown }) => shown !== undefined && shown.lengths.longest <= 16)
    assert.match(cut!.shown[0]!.problems.join(), /max_seq_length/)
    await vscode.commands.executeCommand('workbench.action.files.revert')
  })

  it('is offered above the rows of a data set, which is read with the model that is chosen', async () => {
    const file = inWorkspace('data', 'pairs.jsonl')
    await vscode.workspace.fs.writeFile(
      vscode.Uri.file(file),
      Buffer.from('{"prompt": "Who? ", "completion": "A fox."}\n{"prompt": "Why? ", "completion": "Grapes."}\n'),
    )
    const document = await vscode.workspace.openTextDocument(file)
    await vscode.window.showTextDocument(document)
    const lenses = await eventually('the lenses', async () => {
      const found = await vscode.commands.executeCommand<vscode.CodeLens[]>('vscode.executeCodeLensProvider', document.uri, 10)
      return found.length >= 3 && found
    })
    assert.deepEqual(
      lenses.map(({ command }) => command!.title),
      ['Preview data', 'New recipe', '2 rows · completion'],
    )
    const questions = answerQuestions(['tiny'])
    try {
      const { command, arguments: args } = lenses[0]!.command!
      await vscode.commands.executeCommand(command, ...(args as unknown[]))
    } finally {
      questions.restore()
    }
    const { preview } = await answer(({ preview: shown }) => shown?.format === 'completion')
    const text = (trained: boolean): string =>
      preview!.shown[0]!.tokens.filter((token) => token.trained === trained && !token.special)
        .map((token) => token.text)
        .join('')
    assert.deepEqual([text(false).trim(), text(true).trim()], ['Who?', 'A fox.'])
  })

  it('is not offered above the metrics of a run', async () => {
    const run = await eventually('a run', () => api.services.runs.views[0])
    const { uri } = await vscode.workspace.openTextDocument(`${run.dir}/metrics.jsonl`)
    assert.deepEqual(await vscode.commands.executeCommand('vscode.executeCodeLensProvider', uri, 10), [])
  })
})
