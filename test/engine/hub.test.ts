import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { readSources } from '../../engine/train/hubSources.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { goodToken, HubServer } from '../unit/hub/hubServer.ts'
import {
  adapterBytes,
  fables,
  makeRecipe,
  metricsOf,
  ownRuntimeFolder,
  runProgram,
  starter,
  temporaryFolder,
  until,
} from './support.ts'

const jsonl = (rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join('')
const parquet = join(import.meta.dirname, '../fixtures/data/parquet')
const starterFiles = Object.fromEntries(readdirSync(starter).map((name) => [name, readFileSync(join(starter, name))]))

/** All files below a folder, links followed. */
function filesBelow(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name)
    const info = statSync(path, { throwIfNoEntry: false })
    return info === undefined || info.isSocket() ? [] : info.isDirectory() ? filesBelow(path) : [path]
  })
}

describe('fine-tuning a model and data of the Hub', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const server = new HubServer()
  const data = { 'README.md': '# Fables', 'train.jsonl': jsonl(fables(16)), 'test.jsonl': jsonl(fables(20).slice(16)) }
  let commit = ''
  let dataCommit = ''
  let first = ''

  before(async () => {
    await server.start()
    commit = server.push('tiny/stories260k', starterFiles, { gated: true })
    dataCommit = server.push('datasets/tiny/fables', data, { hidden: true })
    writeFileSync(
      join(folder, 'finetune.yaml'),
      `model: tiny/stories260k
data: { dataset: tiny/fables, eval_split: test }
training: { max_steps: 3, batch_size: 4, gradient_accumulation_steps: 1, max_seq_length: 256, threads: 1, eval_steps: 3, warmup_steps: 0 }
lora: { lora_r: 4, lora_alpha: 8 }
`,
    )
  })
  after(() => server.stop())

  const environment = (more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv => ({
    HF_ENDPOINT: server.endpoint,
    HF_HOME: join(folder, 'huggingface'),
    HF_HUB_CACHE: '',
    HUGGINGFACE_HUB_CACHE: '',
    HF_HUB_OFFLINE: '',
    HF_TOKEN: goodToken,
    ...more,
  })
  const finetune = (args: readonly string[] = [], more: NodeJS.ProcessEnv = {}) =>
    runProgram(['finetune', 'finetune.yaml', ...args], { cwd: folder, env: environment(more) })
  const newestRun = (): string => join(folder, 'outputs', readdirSync(join(folder, 'outputs')).sort().at(-1)!)

  it('fetches both, trains, and names its base as others can find it', async () => {
    const { code, stdout, stderr } = await finetune()
    assert.equal(code, 0, stderr)
    assert.match(stdout, /fetching tiny\/stories260k: /)
    assert.match(stdout, new RegExp(`model: tiny/stories260k at commit ${commit.slice(0, 8)}`))
    assert.match(stdout, new RegExp(`data: tiny/fables at commit ${dataCommit.slice(0, 8)}, 16 samples`))
    first = newestRun()
    assert.equal(metricsOf(first).filter(({ type }) => type === 'eval').length, 1)
    const adapter = JSON.parse(readFileSync(join(first, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.equal(adapter.base_model_name_or_path, 'tiny/stories260k')
    assert.equal(adapter.revision, commit)
    assert.deepEqual(readSources(first), {
      model: { id: 'tiny/stories260k', commit },
      dataset: { id: 'tiny/fables', commit: dataCommit },
    })
    assert.match(readFileSync(join(first, 'recipe.yaml'), 'utf8'), /tiny\/stories260k/)
  })

  it('offline does the same from the cache, and asks nobody', async () => {
    server.take()
    const { code, stderr } = await finetune([], { HF_HUB_OFFLINE: '1', HF_TOKEN: '' })
    assert.equal(code, 0, stderr)
    assert.ok(adapterBytes(newestRun()).equals(adapterBytes(first)))
    const said = await runProgram(['generate', join(first, 'adapter'), 'Once', '--max_new_tokens', '4', '--threads', '1'], {
      cwd: folder,
      env: environment({ HF_HUB_OFFLINE: '1', HF_TOKEN: '' }),
    })
    assert.equal(said.code, 0, said.stderr)
    assert.deepEqual(server.take(), [])
  })

  it('trains on a Parquet data set as on the rows that it was made of', async () => {
    const rows = JSON.parse(readFileSync(join(parquet, 'fables.json'), 'utf8')) as [string][]
    server.push('datasets/tiny/parquet', {
      'README.md': '# Fables',
      'data/train-00000-of-00001.parquet': readFileSync(join(parquet, 'fables.parquet')),
    })
    const cache = { HF_HUB_CACHE: join(folder, 'cache6') }
    const train = async (name: string, more: readonly string[]) => {
      const { code, stdout, stderr } = await finetune(
        ['--dataset', name, '--eval_split', 'train[20:]', '--split', 'train[:20]', ...more],
        cache,
      )
      assert.equal(code, 0, stderr)
      return {
        stdout,
        bytes: adapterBytes(newestRun()),
        evaluations: metricsOf(newestRun()).filter(({ type }) => type === 'eval').length,
      }
    }
    const packed = await train('tiny/parquet', [])
    assert.match(packed.stdout, /data: tiny\/parquet at commit [0-9a-f]{8}, 20 samples/)
    writeFileSync(join(folder, 'rows.jsonl'), jsonl(rows.map(([text]) => ({ text }))))
    const plain = await train(join(folder, 'rows.jsonl'), [])
    assert.ok(packed.bytes.equals(plain.bytes))
    assert.deepEqual([packed.evaluations, plain.evaluations], [1, 1])
  })

  it('goes on with what it began with when the Hub has something newer', async () => {
    server.push('datasets/tiny/fables', { ...data, 'train.jsonl': jsonl(fables(5)) })
    const earlier = { ...process.env }
    Object.assign(process.env, environment())
    try {
      const recipe = makeRecipe(join(folder, 'other'), {
        model: 'tiny/stories260k',
        data: { local_dataset: [], dataset: 'tiny/fables' },
      })
      assert.equal((await prepareRun(recipe)).samples.length, 5)
      server.take()
      const resumed = await prepareRun(recipe, { sources: readSources(first) })
      assert.equal(resumed.samples.length, 16)
      assert.deepEqual(resumed.sources, readSources(first))
      assert.deepEqual(server.take(), [])
    } finally {
      for (const name of Object.keys(environment())) delete process.env[name]
      Object.assign(process.env, earlier)
    }
  })

  it('shows what it fetches in the status of a run in the background, and the token in no list of processes', async () => {
    server.faults.push({ host: 'storage', path: 'model.safetensors', stallAfter: 200_000 })
    const { code, stdout, stderr } = await finetune(['--detach', '--json'], {
      HF_HUB_CACHE: join(folder, 'cache2'),
      HF_HUB_DOWNLOAD_TIMEOUT: '2',
    })
    assert.equal(code, 0, stderr)
    const { dir, pid } = JSON.parse(stdout) as { dir: string; pid: number }
    const reader = RunDirectory.open(dir).reader()
    await until(
      async () => /^fetching tiny\/stories260k: .* of /.test((await reader.status()).detail ?? ''),
      'progress in the status',
    )
    assert.ok(!execFileSync('ps', ['-A', '-o', 'args']).toString().includes(goodToken))
    assert.ok(pid > 0)
    await until(async () => (await reader.status()).state === 'finished', 'the end of the run')
    assert.ok(metricsOf(dir).length > 0)
  })

  it('shows the fetching of a dry run and of generate, too', async () => {
    const dry = await finetune(['--dry-run', '--json'], { HF_HUB_CACHE: join(folder, 'cache4') })
    assert.match(dry.stderr, /fetching tiny\/stories260k: /)
    assert.equal((JSON.parse(dry.stdout) as { totalSteps: number }).totalSteps, 3)
    const said = await runProgram(['generate', 'tiny/stories260k', 'Once', '--max_new_tokens', '4', '--threads', '1'], {
      cwd: folder,
      env: environment({ HF_HUB_CACHE: join(folder, 'cache5') }),
    })
    assert.equal(said.code, 0, said.stderr)
    assert.match(said.stdout, /^Once/)
    assert.match(said.stderr, /fetching tiny\/stories260k: /)
  })

  it('says what to do without a token, and leaves it in no file with one', async () => {
    const { code, stdout, stderr } = await finetune([], { HF_HUB_CACHE: join(folder, 'cache3'), HF_TOKEN: '' })
    assert.equal(code, 1)
    assert.match(stdout + stderr, /tiny\/stories260k is gated/)
    assert.match(stdout + stderr, /Accept its licence at .*HF_TOKEN/)
    const files = filesBelow(folder)
    assert.ok(files.length > 50)
    for (const file of files) assert.ok(!readFileSync(file).includes(goodToken), file)
    assert.ok(server.asked.every(({ host, authorization }) => host === 'hub' || authorization === undefined))
  })
})
