import assert from 'node:assert/strict'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import * as vscode from 'vscode'
import type { PreviewAnswer } from '#shared/previewPage.ts'
import { launch } from '../../../src/engine/startRun.ts'
import type { ExtensionApi } from '../../../src/extension.ts'
import {
  activated,
  answerQuestions,
  catchNotifications,
  eventually,
  extensionId,
  inWorkspace,
  openRecipe,
  reportText,
  textOf,
  type Told,
} from './support.ts'

const recipeWith = (name: string, change: (text: string) => string): string => {
  const path = inWorkspace(`${name}.finetune.yaml`)
  writeFileSync(path, change(textOf(inWorkspace('finetune.yaml'))))
  return path
}

/** MB that a process has read so far; 0 where the system does not tell. */
const bytesRead = (pid: number): number =>
  process.platform === 'linux' ? Number(/rchar: (\d+)/.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))![1]) / 2 ** 20 : 0

describe('bad things', () => {
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

  const told = async (text: RegExp): Promise<Told> => {
    try {
      return await eventually(`a notification like ${text}`, () => notifications.told.find((one) => text.test(one.text)))
    } catch (error) {
      throw new Error(`Told was: ${notifications.told.map((one) => one.text).join('\n')}`, { cause: error })
    }
  }
  const fineTune = (recipe: string): Thenable<string | undefined> =>
    vscode.commands.executeCommand<string | undefined>('unsloth.fineTune', recipe)
  const state = (dir: string): string | undefined => api.services.runs.get(dir)?.state

  describe('an engine that is not whole', () => {
    /** A copy of the extension's engine in a folder of its own. */
    const copyEngine = (name: string, ...parts: readonly string[]): string => {
      const { extensionPath } = vscode.extensions.getExtension(extensionId)!
      const folder = inWorkspace('engines', name)
      for (const part of ['package.json', 'engine/unsloth.mjs', ...parts])
        cpSync(join(extensionPath, part), join(folder, part), { recursive: true })
      return folder
    }
    const choose = (path: string | undefined): Thenable<void> =>
      vscode.workspace.getConfiguration().update('unsloth.engine.path', path, vscode.ConfigurationTarget.Global)
    afterEach(() => choose(undefined))

    it('is not there', async () => {
      await choose('/no/such/engine.mjs')
      assert.equal(await fineTune(inWorkspace('finetune.yaml')), undefined)
      const { actions } = await told(/The engine is not at \/no\/such\/engine\.mjs.*unsloth\.engine\.path/)
      assert.deepEqual(actions, ['Run Doctor'])
      await vscode.commands.executeCommand('unsloth.doctor')
      assert.match(reportText('Doctor.md')!, /✗ +\| Engine +\| The engine is not at/)
    })

    it('lacks its program', async () => {
      await choose(join(copyEngine('half'), 'engine', 'unsloth.mjs'))
      assert.equal(await fineTune(inWorkspace('finetune.yaml')), undefined)
      await told(/The engine is not built yet/)
    })

    it('has compute code of another platform', async () => {
      const folder = copyEngine('other', 'dist/engine.mjs', 'engine/starter')
      mkdirSync(join(folder, 'build', 'cpu'), { recursive: true })
      // The head of a library for 64-bit ARM.
      writeFileSync(
        join(folder, 'build', 'cpu', 'kernels.node'),
        Buffer.concat([
          Buffer.from('7f454c4602010100', 'hex'),
          Buffer.alloc(8),
          Buffer.from('0300b70001000000', 'hex'),
          Buffer.alloc(4072),
        ]),
      )
      await choose(join(folder, 'engine', 'unsloth.mjs'))
      await fineTune(inWorkspace('finetune.yaml'))
      const { actions, kind } = await told(/kernels\.node/)
      assert.deepEqual([kind, actions], ['error', ['Run Doctor']])
    })
  })

  it('runs may not be written where they should be', async () => {
    // Root may write everywhere but into the kernel.
    const folder = process.getuid?.() === 0 ? '/sys/kernel' : inWorkspace('closed')
    mkdirSync(folder, { recursive: true })
    if (process.getuid?.() !== 0) chmodSync(folder, 0o555)
    assert.equal(
      await fineTune(recipeWith('closed', (text) => text.replace('max_steps:', `output_dir: ${folder}/outputs\n  max_steps:`))),
      undefined,
    )
    const { text, actions } = await told(/outputs/)
    assert.ok(text.includes(folder) && /permi/i.test(text), text)
    assert.deepEqual(actions, ['Show Log'])
  })

  describe('during a run', () => {
    let dir: string
    let recipe: string
    const steps = (): number => api.services.runs.get(dir)?.status.step ?? 0
    before(async () => {
      copyFileSync(inWorkspace('fables.jsonl'), inWorkspace('own.jsonl'))
      recipe = recipeWith('frozen', (text) =>
        text
          .replace('max_steps: 80', 'max_steps: 20000')
          .replace('save_steps: 20 ', 'save_steps: 5 ')
          .replace('fables.jsonl', 'own.jsonl'),
      )
      dir = (await fineTune(recipe))!
      await eventually('a checkpoint', () => (api.services.runs.get(dir)?.checkpoint?.step ?? 0) > 0)
    })

    it('the recipe is edited: the run and its panel keep the one that they began with', async () => {
      const frozen = textOf(join(dir, 'recipe.yaml'))
      await openRecipe('frozen.finetune.yaml')
      writeFileSync(recipe, 'model: [\n')
      const { panel } = api.panels.panels.find(({ session }) => session.runs.includes(dir))!
      panel.reveal()
      const before = steps()
      await eventually('further steps', () => steps() > before + 2)
      await vscode.commands.executeCommand('unsloth.openRunRecipe', dir)
      const shown = await eventually('the recipe', () => {
        const document = vscode.window.activeTextEditor?.document
        return document?.uri.fsPath === join(dir, 'recipe.yaml') && document
      })
      assert.equal(shown.getText(), frozen)
      assert.match(frozen, /max_steps: 20000/)
    })

    it('a second process wants the same folder: it is refused, and the first one goes on', async () => {
      await vscode.commands.executeCommand('unsloth.resumeRun', dir)
      await told(/is training|Only a paused/)
      await assert.rejects(launch(dir, api.services.locate(), {}), /is working on this run/)
      const before = steps()
      await eventually('further steps', () => steps() > before)
    })

    it('another run wants the device: it waits, says for what, and can be stopped', async () => {
      const next = (await fineTune(inWorkspace('finetune.yaml')))!
      await eventually('its place in the queue', () =>
        /waiting for .*, used by /.test(api.services.runs.get(next)?.status.detail ?? ''),
      )
      assert.equal(state(next), 'queued')
      await vscode.commands.executeCommand('unsloth.stopRun', next, 'now')
      await eventually('the stop', () => state(next) === 'stopped')
      assert.equal(api.services.runs.get(next)!.status.step, 0)
      const before = steps()
      await eventually('further steps of the first', () => steps() > before)
    })

    it('the data set is deleted: the run goes on, and says what is missing when it is started again', async () => {
      renameSync(inWorkspace('own.jsonl'), inWorkspace('away.jsonl'))
      const before = steps()
      await eventually('further steps', () => steps() > before + 2)
      await vscode.commands.executeCommand('unsloth.stopRun', dir, 'save')
      await eventually('the stop', () => state(dir) === 'stopped')
      notifications.told.length = 0
      await vscode.commands.executeCommand('unsloth.resumeRun', dir)
      const { kind } = await told(/own\.jsonl/)
      assert.equal(kind, 'error')
      await eventually('the failure', () => state(dir) === 'failed')
      renameSync(inWorkspace('away.jsonl'), inWorkspace('own.jsonl'))
      const stopped = steps()
      await vscode.commands.executeCommand('unsloth.resumeRun', dir)
      await eventually('further steps', () => steps() > stopped)
      await vscode.commands.executeCommand('unsloth.stopRun', dir, 'now')
      await eventually('the stop', () => state(dir) === 'stopped')
    })
  })

  /** The engine of the extension, whose files may have 200 KB: where no small disk can be had. */
  const limitedEngine = (): string => {
    const { entry } = api.services.locate()
    const path = inWorkspace('limited.mjs')
    writeFileSync(
      path,
      `import { spawnSync } from 'node:child_process'
const args = ['-c', 'ulimit -f 400; exec "$0" "$@"', process.execPath, ${JSON.stringify(entry)}, ...process.argv.slice(2)]
process.exitCode = spawnSync('/bin/sh', args, { stdio: 'inherit' }).status ?? 1\n`,
    )
    return path
  }

  it('the disk is full: the run fails with a word, and leaves nothing half-written', async () => {
    const disk = process.env.UNSLOTH_HOST_SMALL_DISK!
    if (disk === '')
      await vscode.workspace.getConfiguration().update('unsloth.engine.path', limitedEngine(), vscode.ConfigurationTarget.Global)
    const folder = disk === '' ? inWorkspace('full') : disk
    const dir = (await fineTune(
      recipeWith('full', (text) => text.replace('max_steps:', `output_dir: ${folder}/outputs\n  max_steps:`)),
    ))!
    const { kind, actions } = await told(/disk is full|does not allow a file of this size/i)
    await vscode.workspace.getConfiguration().update('unsloth.engine.path', undefined, vscode.ConfigurationTarget.Global)
    assert.deepEqual([kind, actions], ['error', ['Show Log']])
    await eventually('the failure', () => state(dir) === 'failed')
    const left = (readdirSync(dir, { recursive: true }) as string[]).filter((name) => /\.tmp|\.partial/.test(name))
    assert.deepEqual(left, [])
    assert.ok(!existsSync(join(dir, 'merged')))
  })

  it('a data set has 2 GB: tree and preview stay quick, and memory is bounded', async () => {
    const path = inWorkspace('data', 'huge.jsonl')
    const rows = Array.from(
      { length: 60_000 },
      (_, at) => `{"prompt": "What is row ${at}? ", "completion": "It is row ${at}."}\n`,
    )
    writeFileSync(path, rows.join(''))
    truncateSync(path, 2 ** 31)
    let ticks: number[] = []
    let tick = performance.now()
    const timer = setInterval(() => {
      ticks.push(performance.now() - tick - 20)
      tick = performance.now()
    }, 20)
    // How long the editor waits on this machine when nothing is asked of it.
    await eventually('a second', () => ticks.length >= 50)
    const usual = Math.max(...ticks)
    ticks = []
    const read = bytesRead(process.pid)
    const memory = process.memoryUsage().rss
    const answers: PreviewAnswer[] = []
    const posted = api.services.previews.onDidPost((message) => message.type === 'answer' && answers.push(message))
    const questions = answerQuestions(['tiny'])
    try {
      api.services.library.invalidate()
      const node = await eventually('its row', async () =>
        (await api.trees.datasets.getChildren()).find((one) => one.path === path),
      )
      const item = await api.trees.datasets.getTreeItem(node)
      assert.match(String(item.description), /rows · completion · 2\.0 GB/)
      await vscode.commands.executeCommand('unsloth.openDataset', path)
      const { preview, more } = await eventually('the preview', () => answers[0])
      assert.deepEqual([preview!.shown.length, preview!.samples, more], [10, 2_000, true])
      const lag = Math.max(...ticks)
      assert.ok(lag < 1_000 + 5 * usual, `the editor waited ${lag} ms, as a rule ${usual} ms`)
      const grown = (process.memoryUsage().rss - memory) / 2 ** 20
      assert.ok(grown < 200, `${grown} MB in the editor`)
      const engine = api.services.engine.state
      // It is quick because little is read; how quick is the machine's affair.
      assert.ok(bytesRead(process.pid) - read < 300, `${bytesRead(process.pid) - read} MB read by the editor`)
      if (process.platform === 'linux' && engine.kind === 'running') {
        const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${engine.pid}/status`, 'utf8'))![1]) / 1024
        assert.ok(peak < 700, `${peak} MB in the engine`)
        assert.ok(bytesRead(engine.pid) < 1_000, `${bytesRead(engine.pid)} MB read by the engine`)
      }
    } finally {
      clearInterval(timer)
      posted.dispose()
      questions.restore()
      rmSync(path)
    }
  })
})
