import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import * as vscode from 'vscode'
import type { ToWebview } from '#shared/panelProtocol.ts'
import { commandIds, languageId } from '../../../src/contributions.ts'
import type { ExtensionApi } from '../../../src/extension.ts'
import type { TreeNode } from '../../../src/trees/nodes.ts'
import { contention } from '../../machineTime.ts'
import {
  activated,
  answerQuestions,
  catchNotifications,
  eventually,
  inWorkspace,
  openRecipe,
  reportText,
  textOf,
} from './support.ts'

let api: ExtensionApi
let notifications: ReturnType<typeof catchNotifications>

before(async () => {
  api = await activated()
  notifications = catchNotifications()
})
after(() => notifications.restore())
beforeEach(() => {
  notifications.told.length = 0
})

/** Rows of the starter's data. */
const fables = (): number => textOf(inWorkspace('fables.jsonl')).trimEnd().split('\n').length

const noError = (): void =>
  assert.deepEqual(
    notifications.told.filter(({ kind }) => kind === 'error').map(({ text }) => text),
    [],
  )

describe('the extension', () => {
  it('activates in less than 300 ms', () => {
    const slower = contention()
    assert.ok(
      api.activation < 300 * slower,
      `${api.activation} ms on a machine that is ${slower.toFixed(1)} times slower than at rest`,
    )
  })

  it('registers every command', async () => {
    const known = new Set(await vscode.commands.getCommands(true))
    assert.deepEqual(
      commandIds.filter((id) => !known.has(id)),
      [],
    )
  })

  it('shows free memory of the running engine, and lists the devices that it finds', async () => {
    await vscode.commands.executeCommand('unsloth.doctor')
    await eventually('the devices', () =>
      api.services.devices.devices?.some(({ id, freeBytes }) => id === 'cpu' && freeBytes! > 0),
    )
    const questions = answerQuestions(['cpu'])
    try {
      await vscode.commands.executeCommand('unsloth.selectDevice')
      noError()
      assert.equal(vscode.workspace.getConfiguration('unsloth').get('device'), 'cpu')
    } finally {
      questions.restore()
      await vscode.workspace.getConfiguration('unsloth').update('device', undefined, vscode.ConfigurationTarget.Global)
    }
  })

  it('opens recipes in a language of their own', async () => {
    assert.equal((await openRecipe('finetune.yaml')).languageId, languageId)
    assert.equal((await openRecipe('long.finetune.yaml')).languageId, languageId)
  })
})

describe('trees', () => {
  const label = async (provider: vscode.TreeDataProvider<TreeNode>, node: TreeNode): Promise<string> => {
    const item = await provider.getTreeItem(node)
    return `${typeof item.label === 'string' ? item.label : ''} ${String(item.description)}`
  }

  it('list models of the workspace and the starter with what they are', async () => {
    const models = await api.trees.models.getChildren()
    const labels = await Promise.all(models.map((node) => label(api.trees.models, node)))
    assert.ok(
      labels.some((text) => text.startsWith('tiny models · ')),
      labels.join('\n'),
    )
    assert.ok(
      labels.some((text) => text.startsWith('stories260k starter')),
      labels.join('\n'),
    )
    const tiny = models.find(({ path }) => path === inWorkspace('models', 'tiny'))!
    const facts = await Promise.all((await api.trees.models.getChildren(tiny)).map((node) => label(api.trees.models, node)))
    for (const expected of ['Architecture LlamaForCausalLM', 'Parameters 260K', 'Data type BF16'])
      assert.ok(
        facts.some((fact) => fact.startsWith(expected)),
        facts.join('\n'),
      )
  })

  it('list data sets with rows, columns and format', async () => {
    const datasets = await api.trees.datasets.getChildren()
    const labels = await Promise.all(datasets.map((node) => label(api.trees.datasets, node)))
    assert.ok(
      labels.some((text) => new RegExp(`^fables\\.jsonl ${fables()} rows · text`).test(text)),
      labels.join('\n'),
    )
    assert.ok(
      labels.some((text) => text.startsWith('table.csv data · 2 rows · CSV')),
      labels.join('\n'),
    )
    const chat = datasets.find(({ path }) => path === inWorkspace('data', 'chat.jsonl'))!
    const facts = await Promise.all((await api.trees.datasets.getChildren(chat)).map((node) => label(api.trees.datasets, node)))
    assert.deepEqual(facts, ['Rows 2', 'Columns messages', 'Format chatml'])
  })

  it('notice a data set that comes', async () => {
    await vscode.workspace.fs.writeFile(vscode.Uri.file(inWorkspace('data', 'later.jsonl')), Buffer.from('{"text": "a"}\n'))
    await eventually('later.jsonl in the tree', async () =>
      (await api.trees.datasets.getChildren()).some(({ path }) => path.endsWith('later.jsonl')),
    )
  })
})

describe('a recipe in the editor', () => {
  let document: vscode.TextDocument
  before(async () => {
    document = await openRecipe('finetune.yaml')
    await eventually('the language server', () => api.languageClient())
    await api.languageClient()
  })

  const at = (text: string, offset = 0): vscode.Position => document.positionAt(document.getText().indexOf(text) + offset)

  it('completes keys', async () => {
    const list = await eventually('completions', async () => {
      const found = await vscode.commands.executeCommand<vscode.CompletionList>(
        'vscode.executeCompletionItemProvider',
        document.uri,
        at('max_steps'),
      )
      return found.items.length > 10 && found
    })
    const labels = list.items.map(({ label }) => (typeof label === 'string' ? label : label.label))
    assert.ok(labels.includes('weight_decay'), labels.join(' '))
  })

  it('explains keys', async () => {
    await eventually('the explanation', async () => {
      const hovers = await vscode.commands.executeCommand<vscode.Hover[]>(
        'vscode.executeHoverProvider',
        document.uri,
        at('learning_rate', 3),
      )
      const text = hovers
        .flatMap(({ contents }) => contents.map((part) => (typeof part === 'string' ? part : part.value)))
        .join('\n')
      return /[Ll]earning rate/.test(text)
    })
  })

  it('finds mistakes and repairs them', async () => {
    const edit = new vscode.WorkspaceEdit()
    edit.replace(document.uri, new vscode.Range(at('max_steps'), at('max_steps', 'max_steps'.length)), 'max_stepz')
    await vscode.workspace.applyEdit(edit)
    const problem = await eventually('the mistake', () =>
      vscode.languages.getDiagnostics(document.uri).find(({ message }) => message.includes('max_stepz')),
    )
    const rename = await eventually('the repair', async () => {
      const actions = await vscode.commands.executeCommand<vscode.CodeAction[]>(
        'vscode.executeCodeActionProvider',
        document.uri,
        problem.range,
      )
      return actions.find(({ title, edit: repair }) => title.includes('max_steps') && repair !== undefined)
    })
    await vscode.workspace.applyEdit(rename.edit!)
    await eventually('no mistake', () =>
      vscode.languages.getDiagnostics(document.uri).every(({ severity }) => severity !== vscode.DiagnosticSeverity.Error),
    )
    await document.save()
  })

  it('shows lenses and hints', async () => {
    const titles = await eventually('lenses', async () => {
      const lenses = await vscode.commands.executeCommand<vscode.CodeLens[]>('vscode.executeCodeLensProvider', document.uri, 20)
      const found = lenses.map(({ command }) => command?.title ?? '')
      return found.some((title) => / of .* GB$/.test(title)) && found
    })
    for (const expected of ['▶ Fine-tune', 'Dry run', 'Preview data']) assert.ok(titles.includes(expected), titles.join(' · '))
    const known = new Set(commandIds as string[])
    const lenses = await vscode.commands.executeCommand<vscode.CodeLens[]>('vscode.executeCodeLensProvider', document.uri, 20)
    assert.deepEqual(
      lenses.map(({ command }) => command!.command).filter((id) => !known.has(id)),
      [],
    )
    const everywhere = new vscode.Range(0, 0, document.lineCount, 0)
    await eventually(
      'hints',
      async () =>
        (await vscode.commands.executeCommand<vscode.InlayHint[]>('vscode.executeInlayHintProvider', document.uri, everywhere))
          .length > 0,
    )
  })
})

describe('fine-tuning', () => {
  let dir: string

  it('trains the starter from the command to its end, told by the messages of the panel', async () => {
    await openRecipe('finetune.yaml')
    const updates: ToWebview[] = []
    const ready: string[] = []
    const posted = api.panels.onDidPost(({ message }) => updates.push(message))
    const received = api.panels.onDidReceive(({ message }) => ready.push(message.type))
    try {
      const started = await vscode.commands.executeCommand<string | undefined>('unsloth.fineTune')
      noError()
      assert.ok(started !== undefined && existsSync(join(started, 'recipe.yaml')))
      dir = started
      await eventually('the status bar', () => /\$\((loading~spin|watch|pass)\)/.test(api.statusBar.text))
      const infos = () =>
        updates.flatMap((message) => ('runs' in message ? (message.runs ?? []) : [])).filter(({ id }) => id === dir)
      await eventually('the end in the panel', () => infos().some(({ state }) => state === 'finished'))
      assert.ok(ready.includes('ready'), ready.join(' '))
      const states = [...new Set(infos().map(({ state }) => state))]
      assert.ok(states.includes('training'), states.join(' '))
      assert.ok(
        updates.some((message) => message.type === 'update' && message.data.length > 0),
        'no data was sent while it trained',
      )
      const losses = infos().flatMap(({ loss }) => (loss === null ? [] : [loss]))
      assert.ok(losses.at(-1)! < losses[0]!, `loss went from ${losses[0]} to ${losses.at(-1)}`)
      const told = await eventually('the notification', () =>
        notifications.told.find(({ text }) => text.includes('has finished')),
      )
      assert.deepEqual(told.actions, ['Generate', 'Merge', 'Reveal'])
    } finally {
      posted.dispose()
      received.dispose()
    }
  })

  it('shows the run in the tree with its curve and its results', async () => {
    const node = (await api.trees.runs.getChildren()).find(({ path }) => path === dir)!
    await eventually('its curve', async () => {
      const item = await api.trees.runs.getTreeItem(node)
      return /^[▁-█]{2,} \d/u.test(String(item.description)) && /\bfinished\b/.test(item.contextValue ?? '')
    })
    await eventually('its results', async () => {
      const parts = (await api.trees.runs.getChildren(node)).map(({ kind, path }) => `${kind} ${basename(path)}`)
      return parts.includes('output adapter') && parts.includes('output merged')
    })
  })

  it('writes text with base and tuned model side by side', async () => {
    const shown: string[] = []
    const name = `${basename(dir)}.txt`
    const { reports } = api.services
    const update = reports.update.bind(reports)
    reports.update = (uri, text) => {
      shown.push(text)
      return update(uri, text)
    }
    await vscode.commands.executeCommand('unsloth.generate', dir, 'A fox')
    noError()
    const text = await eventually('both texts', () => {
      const report = reportText(name)
      return report !== undefined && (report.match(/tokens\/s|\d+ tokens/g) ?? []).length >= 2 && report
    })
    reports.update = update
    // Both are shown while both are written.
    assert.ok(
      shown.some((content) => /base \(writing\).*│ tuned: .*\(writing\)/.test(content)),
      shown.join('\n'),
    )
    assert.match(text, /base \(\d+ tokens.*│ tuned: /)
    assert.match(text, /A fox.* │ A fox/)
  })

  it('lists the adapters of a model below it, and what a GGUF file is', async () => {
    writeFileSync(
      inWorkspace('models', 'small.gguf'),
      Buffer.concat([
        Buffer.from('GGUF'),
        Buffer.from(Uint32Array.of(3, 0, 0, 1, 0, 20, 0).buffer),
        Buffer.from('general.architecture'),
        Buffer.from(Uint32Array.of(8, 5, 0).buffer),
        Buffer.from('llama'),
      ]),
    )
    const below = async (name: RegExp): Promise<string[]> => {
      const model = (await api.trees.models.getChildren()).find(({ path }) => name.test(path))
      const nodes = model === undefined ? [] : await api.trees.models.getChildren(model)
      return nodes
        .map((node) => api.trees.models.getTreeItem(node))
        .map(({ label, description }) => `${typeof label === 'string' ? label : ''} ${String(description)}`)
    }
    await eventually('the adapter', async () =>
      (await below(/engine.starter.model$/)).some((line) => line.startsWith('adapter adapter')),
    )
    await eventually('the file', async () => (await below(/small\.gguf$/)).includes('Architecture llama'))
  })

  it('merges the adapter', async () => {
    const questions = answerQuestions([inWorkspace('merged-here')])
    try {
      const folder = await vscode.commands.executeCommand<string>('unsloth.merge', dir)
      noError()
      assert.equal(folder, inWorkspace('merged-here'))
      assert.ok(existsSync(join(folder, 'model.safetensors')) && existsSync(join(folder, 'config.json')))
    } finally {
      questions.restore()
    }
  })

  it('reports plan, model and machine', async () => {
    const recipe = inWorkspace('finetune.yaml')
    await vscode.commands.executeCommand('unsloth.dryRun', recipe)
    await vscode.commands.executeCommand('unsloth.inspectModel', inWorkspace('models', 'tiny'))
    await vscode.commands.executeCommand('unsloth.doctor')
    noError()
    assert.match(reportText('Plan of finetune.yaml')!, /## Memory[\s\S]*\*\*total\*\*/)
    assert.match(reportText('tiny.md')!, /LlamaForCausalLM[\s\S]*model\.embed_tokens\.weight/)
    assert.match(reportText('Doctor.md')!, /Addon/)
  })

  it('says what is wrong with a recipe, with a way to it', async () => {
    await vscode.workspace.fs.writeFile(
      vscode.Uri.file(inWorkspace('bad.finetune.yaml')),
      Buffer.from('version: 1\nmodel: stories260k\ntraining:\n  max_stepz: 3\n'),
    )
    await vscode.commands.executeCommand('unsloth.fineTune', inWorkspace('bad.finetune.yaml'))
    const told = await eventually('the notification', () => notifications.told[0])
    assert.match(told.text, /bad\.finetune\.yaml:4:3: .*max_stepz/)
    assert.deepEqual(told.actions, ['Open Recipe'])
  })

  it('stops and saves, and goes on from the checkpoint', async () => {
    const run = await vscode.commands.executeCommand<string>('unsloth.fineTune', inWorkspace('long.finetune.yaml'))
    noError()
    const step = (): number => api.services.runs.get(run)?.status.step ?? 0
    await eventually('a few steps', () => step() > 3)
    await eventually('the badge', () => api.trees.runsView.badge?.value === 1)
    await vscode.commands.executeCommand('unsloth.stopRun', run, 'save')
    await eventually('the stop', () => api.services.runs.get(run)?.state === 'stopped')
    const stopped = step()
    await eventually('the way to go on', () => api.services.runs.get(run)!.resumable)
    await eventually('no badge', () => api.trees.runsView.badge === undefined)
    await vscode.commands.executeCommand('unsloth.resumeRun', run)
    noError()
    await eventually('further steps', () => step() > stopped)
    await vscode.commands.executeCommand('unsloth.pauseRun', run)
    await eventually('the pause', () => api.services.runs.get(run)?.state === 'paused')
    await vscode.commands.executeCommand('unsloth.continueRun', run)
    await eventually('the continuation', () => api.services.runs.get(run)?.state === 'training')
    await vscode.commands.executeCommand('unsloth.stopRun', run, 'now')
    await eventually('the second stop', () => api.services.runs.get(run)?.state === 'stopped')
    noError()
  })

  it('compares runs and their recipes', async () => {
    const dirs = api.services.runs.views.map((view) => view.dir)
    await vscode.commands.executeCommand('unsloth.compareRuns', dirs[0], dirs.slice(0, 2))
    noError()
    await eventually('the comparison of the recipes', () =>
      vscode.window.tabGroups.all.flatMap(({ tabs }) => tabs).some(({ input }) => input instanceof vscode.TabInputTextDiff),
    )
    await eventually('both in one panel', () => api.panels.panels.some(({ session }) => session.runs.length === 2))
  })

  it('deletes a run only after a question', async () => {
    const { dir: victim } = api.services.runs.views.find(({ state }) => state === 'stopped')!
    const deleting = vscode.commands.executeCommand('unsloth.deleteRun', victim)
    const question = await eventually('the question', () => notifications.told.find(({ text }) => text.includes('Delete')))
    assert.ok(existsSync(victim))
    question.answer('Delete')
    await deleting
    assert.equal(existsSync(victim), false)
    await eventually('that it is gone', () => api.services.runs.get(victim) === undefined)
  })
})

describe('a new recipe', () => {
  it('is made of answers and has no mistakes', async () => {
    const questions = answerQuestions(['models/tiny', 'fables.jsonl', 'LoRA'])
    try {
      const path = await vscode.commands.executeCommand<string>('unsloth.newRecipe')
      noError()
      assert.match(textOf(path), /model: \.\/models\/tiny[\s\S]*local_dataset: \.\/fables\.jsonl/)
      await eventually('the recipe in its language', () => vscode.window.activeTextEditor?.document.languageId === languageId)
      assert.deepEqual(questions.left, [])
    } finally {
      questions.restore()
    }
  })
})

describe('tasks', () => {
  it('offer each recipe', async () => {
    const names = (await vscode.tasks.fetchTasks({ type: 'unsloth' })).map(({ name }) => name)
    assert.ok(names.includes('finetune finetune.yaml'), names.join(', '))
  })

  it('run in a terminal, and tell what is wrong with a recipe as problems', async () => {
    const path = inWorkspace('wrong.finetune.yaml')
    writeFileSync(path, textOf(inWorkspace('finetune.yaml')).replace('max_steps: 80', 'max_steps: many'))
    const task = (await vscode.tasks.fetchTasks({ type: 'unsloth' })).find(
      ({ definition }) => definition.recipe === 'wrong.finetune.yaml',
    )!
    const codes: (number | undefined)[] = []
    const ended = vscode.tasks.onDidEndTaskProcess(
      ({ execution, exitCode }) => execution.task.name === task.name && codes.push(exitCode),
    )
    await vscode.tasks.executeTask(task)
    await eventually('the end of the task', () => codes.length > 0)
    ended.dispose()
    assert.notEqual(codes[0], 0)
    const problems = await eventually('the problem', () => {
      const found = vscode.languages.getDiagnostics(vscode.Uri.file(path))
      return found.length > 0 && found
    })
    assert.match(problems[0]!.message, /max_steps must be a whole number/)
    rmSync(path)
  })

  it('have the command `unsloth` in terminals', () => {
    const mutator = api.services.extension.environmentVariableCollection.get('PATH')
    const folder = mutator!.value.replace(/[:;]$/, '')
    assert.equal(mutator!.type, vscode.EnvironmentVariableMutatorType.Prepend)
    assert.match(
      execFileSync(join(folder, process.platform === 'win32' ? 'unsloth.cmd' : 'unsloth'), ['--version'], { encoding: 'utf8' }),
      /\d+\.\d+\.\d+/,
    )
  })
})
