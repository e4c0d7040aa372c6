import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { RunState } from '#shared/runState.ts'
import { hasEnded } from '#shared/runState.ts'
import { openPeftAdapter } from '../../engine/io/peftAdapter.ts'
import { withRun } from '../../engine/run/controlClient.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import {
  adapterBytes,
  createRun,
  endChildren,
  eventsOf,
  losses,
  makeRecipe,
  ownRuntimeFolder,
  runProgram,
  startProgram,
  temporaryFolder,
  train,
  until,
  writeJsonl,
  type RecipeSections,
} from './support.ts'
import { contention } from '../machineTime.ts'

/** Thousands of steps, so that it is certainly still at work when it is asked something. */
const long: RecipeSections = { training: { max_steps: 100_000, gradient_checkpointing: 'none' } }

describe('control of a run in another process', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  endChildren()

  /** Since a time; a second of a machine with nothing else to do. */
  const withinASecond = (asked: number): void => {
    const took = performance.now() - asked
    const slower = contention()
    assert.ok(took < 1000 * slower, `${took} ms on a machine that is ${slower.toFixed(1)} times slower than at rest`)
  }
  const stepOf = async (run: RunDirectory): Promise<number> =>
    existsSync(run.path('metrics')) ? (await run.reader().readMetrics()).steps.length : 0
  const inState = (run: RunDirectory, state: RunState) =>
    until(async () => (await run.reader().status()).state === state, `${state} of ${run.dir}`)
  const started = (run: RunDirectory, step = 2) => until(async () => (await stepOf(run)) >= step, `step ${step} of ${run.dir}`)
  const runs = (sections: RecipeSections = long) => {
    const run = createRun(makeRecipe(folder, sections))
    return { run, ...startProgram(['run', run.dir]) }
  }

  /** An optimizer step of many seconds: the whole data set as one batch, many times over. */
  const longStep = (): RecipeSections => {
    const words = readFileSync(join(folder, 'fables.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .flatMap((line) => Array.from({ length: 150 }, () => JSON.parse(line) as unknown))
    return {
      data: { local_dataset: writeJsonl(join(folder, 'long.jsonl'), words) },
      training: { max_steps: 3, batch_size: 3600 },
    }
  }

  it('stop now ends within a second', async () => {
    const { run, ended } = runs()
    await started(run)
    const asked = performance.now()
    await withRun(run.dir, (control) => control.stop({ save: false }))
    assert.equal((await ended).code, 0)
    withinASecond(asked)
    const { state } = await run.reader().view()
    assert.equal(state, 'stopped')
    assert.ok(!existsSync(join(run.dir, 'adapter')))
  })

  it('stop now takes effect in the middle of a long step', async () => {
    makeRecipe(folder)
    const { run, ended } = runs(longStep())
    await inState(run, 'training')
    await new Promise((resolve) => setTimeout(resolve, 300))
    assert.equal(await stepOf(run), 0, 'the step is not long enough for this test')
    const asked = performance.now()
    await withRun(run.dir, (control) => control.stop({ save: false }))
    assert.equal((await ended).code, 0)
    withinASecond(asked)
    assert.equal((await run.reader().status()).state, 'stopped')
    assert.equal(await stepOf(run), 0)
  })

  it('stop and save writes a checkpoint and the adapter, and can be resumed', async () => {
    const { run, ended } = runs()
    await started(run)
    await withRun(run.dir, (control) => control.stop({ save: true }))
    assert.equal((await ended).code, 0)
    const { state, checkpoint, resumable } = await run.reader().view()
    assert.equal(state, 'stopped')
    assert.equal(checkpoint?.step, await stepOf(run))
    assert.ok(resumable)
    assert.ok((await openPeftAdapter(join(run.dir, 'adapter'))).modules.size > 0)
  })

  it('pause frees the memory, resume goes on bit for bit', async () => {
    const sections: RecipeSections = { training: { max_steps: 10, batch_size: 24, max_seq_length: 256 } }
    const { run, child, ended } = runs(sections)
    await started(run)
    const working = memoryOf(child.pid!)
    await withRun(run.dir, (control) => control.pause())
    await inState(run, 'paused')
    const planned = (await run.reader().status()).plannedBytes!
    const paused = memoryOf(child.pid!)
    assert.ok(working - paused > 0.4 * planned, `${working} bytes while training, ${paused} paused, the plan has ${planned}`)
    // The device is free: another run uses it meanwhile.
    await train(makeRecipe(folder))
    assert.ok(!hasEnded((await run.reader().status()).state))
    const resumed = await runProgram(['resume', run.dir])
    assert.match(resumed.stdout, /going on from step \d+/)
    assert.equal((await ended).code, 0)
    const whole = await train(makeRecipe(folder, sections))
    assert.deepEqual(losses(run.dir), losses(whole))
    assert.ok(adapterBytes(run.dir).equals(adapterBytes(whole)))
  })

  it('a paused run that is told to stop and save makes its adapter', async () => {
    const { run, ended } = runs()
    await started(run)
    await withRun(run.dir, (control) => control.pause())
    await inState(run, 'paused')
    await withRun(run.dir, (control) => control.stop({ save: true }))
    assert.equal((await ended).code, 0)
    assert.ok(existsSync(join(run.dir, 'adapter', 'adapter_model.safetensors')))
    assert.equal((await run.reader().status()).state, 'stopped')
  })

  it('a second process on the directory is refused and told who has it', async () => {
    const { run, child, ended } = runs()
    await started(run)
    const second = await runProgram(['run', run.dir])
    assert.equal(second.code, 1)
    assert.match(second.stderr, new RegExp(`process ${child.pid} on .* is working on this run`))
    assert.match(second.stderr, /Watch it or stop it/)
    const resumed = await runProgram(['resume', run.dir])
    assert.equal(resumed.code, 1)
    assert.match(resumed.stderr, /the run is training/)
    assert.equal((await run.reader().view()).alive, true)
    await withRun(run.dir, (control) => control.stop({ save: false }))
    await ended
  })

  it('two runs on one device go one after the other', async () => {
    const first = runs()
    await started(first.run)
    const second = runs({})
    await until(async () => {
      const { state, detail } = await second.run.reader().status()
      return state === 'queued' && detail?.includes('waiting for cpu, used by test')
    }, 'the second run to wait')
    assert.equal(await stepOf(second.run), 0)
    await withRun(first.run.dir, (control) => control.stop({ save: false }))
    await first.ended
    assert.equal((await second.ended).code, 0)
    assert.equal((await second.run.reader().status()).state, 'finished')
  })

  it('a run that waits in the queue stops at once, also with save', async () => {
    const first = runs()
    await started(first.run)
    const second = runs({})
    await until(async () => (await second.run.reader().status()).detail?.startsWith('waiting'), 'the second run to wait')
    await withRun(second.run.dir, (control) => control.stop({ save: true }))
    assert.equal((await second.ended).code, 0)
    assert.equal((await second.run.reader().status()).state, 'stopped')
    await withRun(first.run.dir, (control) => control.stop({ save: false }))
    await first.ended
  })

  it('Ctrl-C stops after the step and saves', async () => {
    const { run, child, ended } = runs()
    await started(run)
    child.kill('SIGINT')
    const { code, stderr } = await ended
    assert.equal(code, 0)
    assert.match(stderr, /stopping after this step and saving; press Ctrl-C again to stop at once/)
    assert.ok(existsSync(join(run.dir, 'adapter', 'adapter_model.safetensors')))
    assert.deepEqual(
      eventsOf(run.dir)
        .map(({ event }) => event)
        .slice(-3),
      ['checkpoint', 'output', 'stop'],
    )
  })

  it('Ctrl-C twice, or SIGTERM, stops within a long step and saves nothing', async () => {
    for (const signals of [['SIGINT', 'SIGINT'], ['SIGTERM']] as const) {
      const { run, child, ended } = runs(longStep())
      await inState(run, 'training')
      await new Promise((resolve) => setTimeout(resolve, 100))
      let told = ''
      child.stderr!.on('data', (text: string) => (told += text))
      child.kill(signals[0])
      if (signals[1] !== undefined) {
        await until(() => told.includes('press Ctrl-C again'), 'the answer to the first Ctrl-C')
        child.kill(signals[1])
      }
      const asked = performance.now()
      await ended
      withinASecond(asked)
      assert.equal((await run.reader().status()).state, 'stopped')
      assert.ok(!existsSync(join(run.dir, 'adapter')))
    }
  })

  it('a killed run shows as interrupted, and resumes', async () => {
    const { run, child, ended } = runs({ training: { max_steps: 100_000, save_steps: 2 } })
    await started(run, 3)
    child.kill('SIGKILL')
    await ended
    const { state, alive, resumable, checkpoint } = await run.reader().view()
    assert.deepEqual([state, alive, resumable], ['interrupted', false, true])
    const shown = await runProgram(['status', run.dir])
    assert.match(shown.stdout, new RegExp(`interrupted[^]*unsloth resume .* goes on from step ${checkpoint!.step}`))
    const { child: again, ended: endedAgain } = startProgram(['resume', run.dir])
    await until(async () => {
      const { attempt, state: now } = await run.reader().status()
      return attempt === 2 && now === 'training' && (await stepOf(run)) > checkpoint!.step
    }, 'further steps')
    again.kill('SIGINT')
    assert.equal((await endedAgain).code, 0)
    assert.deepEqual(
      [...(await run.reader().readMetrics()).steps.columns.step],
      Array.from({ length: await stepOf(run) }, (_, i) => i + 1),
    )
  })

  it('a detached run outlives its starter, in a session of its own', async () => {
    const recipe = makeRecipe(folder, long)
    const { stdout, code, stderr } = await runProgram([
      'finetune',
      '--detach',
      '--json',
      '--model',
      recipe.model.name,
      '--local_dataset',
      recipe.data.local_dataset[0]!,
      '--output_dir',
      join(folder, 'detached'),
      '--max_steps',
      '100000',
      '--max_seq_length',
      '256',
      '--threads',
      '1',
    ])
    assert.equal(code, 0, stderr)
    const { dir, pid } = JSON.parse(stdout) as { dir: string; pid: number }
    const run = RunDirectory.open(dir)
    try {
      await started(run, 3)
      const [session] = execFileSync('ps', ['-o', 'sid=', '-p', String(pid)], { encoding: 'utf8' })
        .trim()
        .split(/\s+/)
      assert.equal(Number(session), pid)
      assert.equal((await runProgram(['stop', dir])).code, 0)
      await until(async () => hasEnded((await run.reader().status()).state), 'the end')
      await until(async () => !(await run.reader().isAlive()), 'the process to go')
    } finally {
      if (await run.reader().isAlive()) process.kill(pid, 'SIGKILL')
    }
  })
})

/** Resident bytes of a process. */
function memoryOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024
}
