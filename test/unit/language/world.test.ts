import assert from 'node:assert/strict'
import { cpSync, existsSync, mkdirSync, openSync, ftruncateSync, closeSync, writeFileSync, writeSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import { join } from 'node:path'
import { diagnoseSchema } from '../../../src/language/diagnostics.ts'
import { SourceText } from '../../../src/language/text.ts'
import { foreground } from '../../../src/language/world/background.ts'
import { datasetFacts } from '../../../src/language/world/datasetFacts.ts'
import { cpuTarget } from '../../../engine/graph/target.ts'
import { hubCacheFolder } from '../../../engine/hub/settings.ts'
import { World } from '../../../src/language/world/nodeWorkspace.ts'
import { scanFolders } from '../../../src/language/world/scanFolders.ts'
import { planTraining } from '../../../engine/train/trainingPlan.ts'
import { describeModel, patchModel } from '../../../engine/runtime/patchedModel.ts'
import type { Recipe } from '#shared/recipe.ts'
import { root, temporaryFolder } from './support.ts'
import { processorTime } from '../../machineTime.ts'

const starter = join(root, 'engine/starter')
const rows = (count: number): string =>
  Array.from({ length: count }, (_, index) => JSON.stringify({ prompt: `question ${index}`, completion: 'answer' })).join('\n') +
  '\n'

const recipeOf = (text: string): Recipe => diagnoseSchema(new SourceText(text), 'f.yaml').recipe!

describe('the world around recipes', () => {
  const folder = temporaryFolder()
  const hub = join(folder, 'cache', 'hub')
  const workspace = join(folder, 'workspace')
  let world: World

  before(() => {
    const put = (path: string, content: string | Uint8Array): void => {
      mkdirSync(join(path, '..'), { recursive: true })
      writeFileSync(path, content)
    }
    cpSync(join(starter, 'model'), join(workspace, 'models/tiny'), { recursive: true })
    cpSync(join(starter, 'model'), join(hub, 'models--org--some-model/snapshots/abc123'), { recursive: true })
    put(join(hub, 'models--org--some-model/refs/main'), 'abc123')
    put(join(hub, 'datasets--org--questions/refs/main'), 'c'.repeat(40))
    put(join(hub, `datasets--org--questions/snapshots/${'c'.repeat(40)}/train.jsonl`), rows(30))
    put(join(hub, 'models--org--half/snapshots/1/config.json'), '{}')
    put(join(workspace, 'data/train.jsonl'), rows(100))
    put(join(workspace, 'data/list.json'), JSON.stringify([{ instruction: 'a', output: 'b' }]))
    put(join(workspace, 'data/table.csv'), 'text,note\n"a, ""b""",1\nc,2\n')
    put(join(workspace, 'data/packed.jsonl.gz'), gzipSync(rows(7)))
    put(join(workspace, 'package.json'), '[{}]')
    put(join(workspace, 'notes.json'), '{"a": 1}')
    put(join(workspace, 'node_modules/x/data.jsonl'), rows(1))
    world = new World({ roots: [workspace], background: foreground, hubCache: hub })
  })

  it('finds models and data sets, and not what only looks like them', async () => {
    const { models, datasets } = await scanFolders([workspace])
    assert.deepEqual(
      models.map((model) => model.folder),
      [join(workspace, 'models/tiny')],
    )
    assert.deepEqual(
      datasets.map(({ path }) => path).sort(),
      ['list.json', 'packed.jsonl.gz', 'table.csv', 'train.jsonl'].map((name) => join(workspace, 'data', name)),
    )
  })

  it('names models and data as a recipe in a folder does', async () => {
    const models = await world.at(workspace).models()
    assert.deepEqual(
      models.map(({ name, from }) => [name, from]),
      [
        ['./models/tiny', 'workspace'],
        ['org/some-model', 'hub cache'],
        ['stories260k', 'bundled'],
      ],
    )
    assert.equal(models[0]!.architecture, 'LlamaForCausalLM')
    const below = world.at(join(workspace, 'recipes'))
    assert.equal((await below.models())[0]!.name, '../models/tiny')
    assert.ok((await below.datasets()).some(({ name }) => name === '../data/train.jsonl'))
  })

  it('reads a model by path, by its id in the Hub cache, and by its bundled name', async () => {
    const here = world.at(workspace)
    for (const name of ['./models/tiny', 'org/some-model', 'stories260k']) {
      const facts = await here.model(name)
      assert.ok(facts.ok, name)
      assert.deepEqual([facts.value.layers, facts.value.context, facts.value.parameters], [5, 512, 260_032])
      assert.deepEqual(await here.targetModules(name), [
        'q_proj',
        'k_proj',
        'v_proj',
        'o_proj',
        'gate_proj',
        'up_proj',
        'down_proj',
      ])
    }
    const missing = await here.model('org/other')
    assert.ok(!missing.ok && missing.missing)
    assert.ok(!(await here.model('../../../../etc')).ok)
  })

  it('reads columns, format and rows of each kind of file', async () => {
    const facts = async (name: string) => {
      const { columns, format, rows: count, exact } = await datasetFacts(join(workspace, 'data', name))
      return [columns, format, count, exact]
    }
    assert.deepEqual(await facts('train.jsonl'), [['prompt', 'completion'], 'completion', 100, true])
    assert.deepEqual(await facts('list.json'), [['instruction', 'output'], 'alpaca', 1, true])
    assert.deepEqual(await facts('table.csv'), [['text', 'note'], 'text', 2, true])
    assert.deepEqual(await facts('packed.jsonl.gz'), [['prompt', 'completion'], 'completion', 7, true])
  })

  it('reads a file of 2 GB in no time and little memory', async () => {
    const path = join(folder, 'huge.jsonl')
    const handle = openSync(path, 'w')
    writeSync(handle, rows(30_000))
    ftruncateSync(handle, 2 ** 31)
    closeSync(handle)
    const before = process.memoryUsage().rss
    const time = await processorTime(async () => {
      const { columns, exact } = await datasetFacts(path)
      assert.deepEqual(columns, ['prompt', 'completion'])
      assert.equal(exact, false)
    })
    assert.ok(time < 1000, `${time} ms`)
    assert.ok(process.memoryUsage().rss - before < 100 * 2 ** 20)
  })

  it('plans with the planner of the engine', async () => {
    const recipe = recipeOf(
      'model: ./models/tiny\ndata:\n  local_dataset: data/train.jsonl\ntraining:\n  max_seq_length: 256\n  threads: 2\nlora:\n  lora_r: 8\n',
    )
    world.setDevices([{ id: 'cpu', label: 'cpu', freeBytes: 2 ** 33, totalBytes: 2 ** 34 }])
    const plan = await world.at(workspace).plan(recipe)
    assert.ok(plan.ok)
    const patched = patchModel(
      await describeModel(join(workspace, 'models/tiny')),
      {
        kind: 'lora',
        r: 8,
        alpha: 16,
        dropout: 0,
        rslora: false,
        modulesToSave: [],
        targets: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
      },
      cpuTarget(),
    )
    const own = planTraining(patched, {
      checkpointing: 'auto',
      longestSample: 256,
      longestStep: 2048,
      sequences: 8,
      evaluates: false,
      availableBytes: 2 ** 32,
      threads: 2,
    })
    assert.equal(plan.value.totalBytes, own.totalBytes)
    assert.equal(plan.value.parameters, 260_032)
    assert.ok(plan.value.trainableParameters > 10_000 && plan.value.deviceBytes === 2 ** 34)
  })

  it('tells the figure of a run that does not fit', async () => {
    const recipe = recipeOf('model: ./models/tiny\ndata:\n  local_dataset: data/train.jsonl\n')
    world.setDevices([{ id: 'cpu', label: 'cpu', freeBytes: 2 ** 20, totalBytes: 2 ** 21 }])
    const plan = await world.at(workspace).plan(recipe)
    assert.ok(plan.ok && plan.value.totalBytes > 2 ** 20)
    world.setDevices(undefined)
  })

  it('counts tokens as the engine does', async () => {
    const recipe = recipeOf('model: ./models/tiny\ndata:\n  local_dataset: data/train.jsonl\n')
    const tokens = await world.at(workspace).tokens(recipe)
    assert.ok(tokens.ok, tokens.ok ? '' : tokens.problem)
    assert.ok(
      tokens.value.samples === 100 && tokens.value.whole && tokens.value.p50 <= tokens.value.p99 && tokens.value.longest < 60,
    )
  })

  it('sees a file that changed', async () => {
    const path = join(workspace, 'data/late.jsonl')
    const here = world.at(workspace)
    assert.ok(!(await here.dataset('data/late.jsonl')).ok)
    writeFileSync(path, '{"text": "a"}\n')
    assert.deepEqual(await here.columns('data/late.jsonl'), ['text'])
    writeFileSync(path, '{"other": "abc"}\n')
    assert.deepEqual(await here.columns('data/late.jsonl'), ['other'])
  })

  it('knows data sets of the Hub that were fetched before, and looks for no others', async () => {
    const there = await world.at(workspace).dataset('org/questions')
    assert.ok(there.ok)
    assert.deepEqual([there.value.columns, there.value.rows, there.value.exact], [['prompt', 'completion'], 30, true])
    const absent = await world.at(workspace).dataset('org/nothing')
    assert.ok(!absent.ok && absent.missing)
  })

  it('heeds the variables that say where the Hub cache is', () => {
    assert.equal(hubCacheFolder({ HF_HUB_CACHE: '/a' }), '/a')
    assert.equal(hubCacheFolder({ HF_HOME: '/h' }), join('/h', 'hub'))
    assert.ok(existsSync(hub))
  })
})
