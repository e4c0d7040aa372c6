import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { newStatus } from '#shared/runState.ts'
import type { RunView } from '../../../engine/run/runReader.ts'
import { parseRecipe } from '../../../engine/recipe/parseRecipe.ts'
import { sideBySide, wrap } from '../../../src/commands/sideBySide.ts'
import { table } from '../../../src/commands/reports.ts'
import { locateEngine, platformProblem } from '../../../src/engine/location.ts'
import { launcherScript } from '../../../src/engine/launcherScript.ts'
import { restartPolicy } from '../../../src/engine/restartPolicy.ts'
import { freeRecipeName, pathInRecipe, recipeText } from '../../../src/recipes/recipeText.ts'
import { starterRecipe } from '../../../src/recipes/starter.ts'
import { progressText, sparkline } from '../../../src/status/runText.ts'
import { shortPath } from '../../../src/trees/library.ts'
import { lossSamples } from '../../../src/trees/lossSamples.ts'
import { pathOf, runOf } from '../../../src/trees/nodes.ts'
import { delimitedFacts, splitHead } from '../../../src/trees/tableFacts.ts'

describe('small parts of the extension', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'unsloth-pieces-'))
  })
  after(() => rmSync(folder, { recursive: true }))

  const view = (patch: object, state: RunView['state']): RunView => ({
    dir: '/r',
    status: { ...newStatus('run', new Date(), patch), state: state === 'interrupted' ? 'training' : state },
    state,
    alive: state === 'training',
    resumable: false,
    heartbeat: undefined,
    checkpoint: undefined,
  })

  it('progress in a line', () => {
    const patch = { step: 1240, totalSteps: 5000, loss: 1.7321, etaSeconds: 1080 }
    assert.equal(progressText(view(patch, 'training')), '1,240/5,000 · loss 1.732 · 18 m')
    assert.equal(progressText(view(patch, 'saving')), '1,240/5,000 · loss 1.732 · saving')
    assert.equal(progressText(view(patch, 'paused')), '1,240/5,000 · loss 1.732 · paused')
    assert.equal(progressText(view({ detail: 'waiting for cpu' }, 'queued')), 'queued: waiting for cpu')
  })

  it('a curve in characters', () => {
    assert.equal(sparkline([8, 7, 6, 5, 4, 3, 2, 1]), '█▇▆▅▄▃▂▁')
    assert.equal(sparkline([]), '')
    assert.equal(sparkline([2, NaN, 2]), '▁▁')
    assert.equal(
      sparkline(
        Array.from({ length: 1000 }, (_, at) => 1000 - at),
        4,
      ),
      '█▆▃▁',
    )
  })

  it('losses from small and large metrics files', async () => {
    const line = (loss: number | string, step: number): string =>
      JSON.stringify({ type: 'step', step, epoch: 1, loss, grad_norm: 1 })
    const small = join(folder, 'small.jsonl')
    writeFileSync(small, [line(3, 1), line('NaN', 2), '{"type":"eval","step":2,"eval_loss":9}', line(1, 3)].join('\n'))
    assert.deepEqual(await lossSamples(small), [3, 1])
    const large = join(folder, 'large.jsonl')
    writeFileSync(large, Array.from({ length: 20_000 }, (_, at) => line(20_000 - at, at)).join('\n'))
    const samples = await lossSamples(large)
    assert.ok(
      samples.length > 60 && samples.length < 200 && samples[0]! > 19_990 && samples.at(-1)! < 200,
      `${samples.length}: ${samples[0]} … ${samples.at(-1)}`,
    )
    assert.deepEqual(
      [...samples].sort((a, b) => b - a),
      samples,
    )
    assert.deepEqual(await lossSamples(join(folder, 'none')), [])
  })

  it('texts side by side, in lines of equal width', () => {
    assert.deepEqual(wrap('aa bb cc', 5), ['aa bb', 'cc'])
    assert.deepEqual(wrap('abcdefgh', 3), ['abc', 'def', 'gh'])
    assert.deepEqual(wrap('a\n\nb', 5), ['a', '', 'b'])
    assert.equal(
      sideBySide({ title: 'L', text: 'one two' }, { title: 'R', text: '😀' }, 4),
      'L    │ R\n──── │ ────\none  │ 😀\ntwo  │',
    )
  })

  it('tables that line up', () => {
    assert.equal(table(['a', 'b'], [['x|y', '1']], new Set([1])), '| a    |   b |\n|------|----:|\n| x\\|y |   1 |')
  })

  it('recipes made of choices are valid', () => {
    for (const method of ['lora', 'qlora', 'full'] as const) {
      const { recipe, warnings } = parseRecipe(
        recipeText({ model: './my model', dataset: '../data: all.jsonl', method }),
        '/w/finetune.yaml',
      )
      assert.deepEqual(warnings, [])
      assert.equal(recipe.model.name, './my model')
      assert.deepEqual(recipe.data.local_dataset, ['../data: all.jsonl'])
      assert.deepEqual(
        [recipe.training.training_type, recipe.training.load_in_4bit],
        [method === 'full' ? 'full' : 'lora', method === 'qlora'],
      )
    }
    assert.deepEqual(parseRecipe(starterRecipe('./fables.jsonl'), '/w/finetune.yaml').warnings, [])
  })

  it('paths as recipes have them', () => {
    assert.equal(pathInRecipe('/w/data/a.jsonl', '/w'), './data/a.jsonl')
    assert.equal(pathInRecipe('/d/a.jsonl', '/w'), '../d/a.jsonl')
    assert.equal(pathInRecipe('/a.jsonl', '/w/x/y/z'), '/a.jsonl')
    assert.equal(pathInRecipe('Qwen/Qwen3-0.6B', '/w'), 'Qwen/Qwen3-0.6B')
    assert.equal(
      freeRecipeName(() => false),
      'finetune.yaml',
    )
    assert.equal(
      freeRecipeName((name) => name === 'finetune.yaml'),
      'recipe-2.finetune.yaml',
    )
    const roots = [
      { name: 'one', path: '/one' },
      { name: 'two', path: '/two' },
    ]
    assert.equal(shortPath('/two/m/x', roots), 'two/m/x')
    assert.equal(shortPath('/one/m/x', roots.slice(0, 1)), 'm/x')
    assert.equal(shortPath('/three/x', roots), '/three/x')
  })

  it('arguments of commands are paths in many forms', () => {
    assert.equal(pathOf('/a/b'), '/a/b')
    assert.equal(pathOf('file:///a/b%20c'), '/a/b c')
    assert.equal(pathOf({ scheme: 'file', fsPath: '/a' }), '/a')
    assert.equal(pathOf({ scheme: 'untitled', fsPath: '/a' }), undefined)
    assert.equal(pathOf(undefined), undefined)
    const checkpoint = { kind: 'checkpoint', path: '/r/checkpoints/step-1', run: '/r' }
    assert.equal(pathOf(checkpoint), '/r/checkpoints/step-1')
    assert.equal(runOf(checkpoint), '/r')
  })

  it('tables in text files', async () => {
    const path = join(folder, 'a.csv')
    writeFileSync(path, '\ufeff"a,b";c\r\n"x\ny";1\r\nz;2')
    assert.deepEqual(await delimitedFacts(path), { rows: 2, exact: true, columns: ['a,b', 'c'], format: 'CSV' })
    assert.deepEqual(splitHead('a\t"b ""c"""\n1', '\t'), ['a', 'b "c"'])
    writeFileSync(path, '')
    assert.equal((await delimitedFacts(path)).rows, 0)
  })

  it('an engine that keeps dying stays down', () => {
    let policy = restartPolicy(3, 1000, 100)
    const delays: number[] = []
    for (let now = 0; now < 4; now++) {
      const next = policy.next(now)
      if (next === undefined) break
      delays.push(next.delay)
      policy = next.policy
    }
    assert.deepEqual(delays, [100, 200, 400])
    assert.equal(policy.next(10), undefined)
    assert.equal(policy.next(5000)?.delay, 100)
  })

  it('says why the engine cannot run here', () => {
    assert.equal(platformProblem(folder, 'sunos-sparc')?.code, 'NATIVE')
    assert.match(platformProblem(folder, 'sunos-sparc')!.message, /not available for sunos-sparc/)
    assert.match(platformProblem(folder, 'linux-x64')!.message, /missing/)
    assert.throws(() => locateEngine(folder, ''), /The engine is not at/)
    assert.throws(() => locateEngine(folder, 'relative.mjs'), /absolute path/)
    assert.throws(() => locateEngine(folder, '/no/such.mjs'), /\/no\/such\.mjs/)
  })

  it('the command of terminals quotes what it must', () => {
    const location = { execPath: "/it's here/node", entry: '/e/unsloth.mjs', env: { ELECTRON_RUN_AS_NODE: '1' } }
    assert.equal(
      launcherScript(location, false).text,
      "#!/bin/sh\nELECTRON_RUN_AS_NODE='1' exec '/it'\\''s here/node' '/e/unsloth.mjs' \"$@\"\n",
    )
    assert.match(launcherScript(location, true).text, /set "ELECTRON_RUN_AS_NODE=1"\r\n/)
  })
})
