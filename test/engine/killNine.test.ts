import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { openPeftAdapter } from '../../engine/io/peftAdapter.ts'
import { openTensorSource } from '../../engine/io/tensorSource.ts'
import { checkpointManifest } from '../../engine/run/checkpoints.ts'
import type { RunDirectory } from '../../engine/run/runDirectory.ts'
import {
  adapterBytes,
  createRun,
  makeRecipe,
  metricsOf,
  ownRuntimeFolder,
  program,
  runProgram,
  temporaryFolder,
} from './support.ts'

const rounds = 20

describe('kill −9 of `unsloth run`', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const recipe = () =>
    makeRecipe(folder, {
      data: { eval_split: 4 },
      training: { max_steps: 12, save_steps: 1, save_total_limit: 3, eval_steps: 5 },
      lora: { lora_dropout: 0.05 },
      save: { method: ['lora', 'merged_16bit'] },
    })

  /** Starts the run and, with a delay, kills it after `delay` ms, counted from the moment that it begins to work. True when it came to its end before. */
  async function runAndKill(run: RunDirectory, delay?: number): Promise<boolean> {
    const attempts = (await run.reader().status()).attempt
    const child = spawn(process.execPath, [program, 'run', run.dir], { stdio: ['ignore', 'ignore', 'pipe'], env: process.env })
    let errors = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text))
    const exited = new Promise<{ code: number | null; signal: string | null }>((resolve) =>
      child.once('close', (code, signal) => resolve({ code, signal })),
    )
    while (child.exitCode === null && (await run.reader().status()).attempt === attempts)
      await new Promise((resolve) => setTimeout(resolve, 1))
    const timer = delay === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), delay)
    const { code, signal } = await exited
    clearTimeout(timer)
    assert.ok(signal === 'SIGKILL' || code === 0, `code ${code}: ${errors}`)
    return signal === null
  }

  /** Whatever stands under its final name is whole. Returns the newest checkpoint's step. */
  async function checkNothingHalf(run: RunDirectory): Promise<number> {
    const view = await run.reader().view()
    assert.equal(view.state, 'interrupted')
    assert.equal(view.resumable, view.checkpoint !== undefined)
    assert.equal((await run.reader().readMetrics()).invalid, 0)
    const folders = existsSync(run.path('checkpoints'))
      ? readdirSync(run.path('checkpoints')).filter((name) => name.startsWith('step-'))
      : []
    for (const name of folders) {
      const path = join(run.path('checkpoints'), name)
      assert.ok(existsSync(join(path, checkpointManifest)))
      await openPeftAdapter(path)
      assert.deepEqual([...(await openTensorSource(join(path, 'optimizer.safetensors'))).tensors.keys()], ['moment1', 'moment2'])
    }
    assert.equal(run.reader().checkpoints().length, folders.length)
    if (existsSync(join(run.dir, 'adapter'))) await openPeftAdapter(join(run.dir, 'adapter'))
    if (existsSync(join(run.dir, 'merged'))) assert.equal((await openTensorSource(join(run.dir, 'merged'))).tensors.size, 47)
    return view.checkpoint?.step ?? 0
  }

  it(`at ${rounds} random moments: each time it goes on, nothing is half-written, and the result is the uninterrupted one`, async () => {
    const whole = createRun(recipe())
    const began = performance.now()
    assert.equal((await runProgram(['run', whole.dir])).code, 0)
    const length = performance.now() - began
    const expected = {
      metrics: metricsOf(whole.dir),
      adapter: adapterBytes(whole.dir),
      merged: readFileSync(join(whole.dir, 'merged', 'model.safetensors')),
    }

    function checkResult(run: RunDirectory): void {
      assert.deepEqual(metricsOf(run.dir), expected.metrics)
      assert.ok(adapterBytes(run.dir).equals(expected.adapter))
      assert.ok(readFileSync(join(run.dir, 'merged', 'model.safetensors')).equals(expected.merged))
      const litter = [run.dir, run.path('checkpoints')]
        .flatMap((place) => readdirSync(place))
        .filter((name) => /^\.(tmp|replaced)|\.(partial|new|old)-/.test(name))
      assert.deepEqual(litter, [])
    }

    let run = createRun(recipe())
    let newest = 0
    const moments: string[] = []
    for (let killed = 0; killed < rounds;) {
      const delay = Math.random() * 0.5 * length
      // A process that was killed on its way out had finished its run.
      if ((await runAndKill(run, delay)) || (await run.reader().status()).state === 'finished') {
        checkResult(run)
        run = createRun(recipe())
        newest = 0
        continue
      }
      ++killed
      const step = await checkNothingHalf(run)
      moments.push(`${delay.toFixed(0)} ms, step ${step}`)
      assert.ok(step >= newest, `the newest checkpoint went back from ${newest} to ${step}: ${moments.join('; ')}`)
      newest = step
    }
    while (!(await runAndKill(run)));
    checkResult(run)
    assert.equal((await run.reader().status()).state, 'finished')
  }).timeout(120_000)
})
