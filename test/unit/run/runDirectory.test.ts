import assert from 'node:assert/strict'
import fs from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { RunDirectory, runFolderName } from '../../../engine/run/runDirectory.ts'
import type { RunAspect } from '../../../engine/run/runReader.ts'
import { listRuns, RunReader } from '../../../engine/run/runReader.ts'
import { stepRecord, temporaryFolder } from './support.ts'

const now = new Date(2026, 10, 21, 14, 3, 5)

describe('RunDirectory', () => {
  const parent = temporaryFolder()
  let count = 0
  const fresh = (): RunDirectory => RunDirectory.create(join(parent, `p${count++}`), 'demo', 'version: 1\n', { now })

  it('names folders by time and name', () => {
    assert.equal(runFolderName('stories260k', now), '2026-11-21_14-03-05_stories260k')
    assert.equal(runFolderName('Qwen/Qwen2.5 0.5B: größe?', now), '2026-11-21_14-03-05_Qwen-Qwen2.5-0.5B-gro-e')
    assert.equal(runFolderName('..', now), '2026-11-21_14-03-05_run')
    assert.ok(runFolderName('x'.repeat(500), now).length <= 80)
  })

  it('creates runs that never share a folder, with recipe and queued status', async () => {
    const folder = join(parent, 'new', 'deep')
    const runs = Array.from({ length: 3 }, () =>
      RunDirectory.create(folder, 'demo', 'a: 1\nhub_token: secret9\n', { now, status: { model: 'm' } }),
    )
    assert.deepEqual(fs.readdirSync(folder).sort(), [
      '2026-11-21_14-03-05_demo',
      '2026-11-21_14-03-05_demo-2',
      '2026-11-21_14-03-05_demo-3',
    ])
    assert.equal(runs[1]!.recipe(), 'a: 1\nhub_token: <redacted>\n')
    const { state, model, attempt, name } = await runs[2]!.reader().status()
    assert.deepEqual([state, model, attempt, name], ['queued', 'm', 0, 'demo'])
    assert.equal((await listRuns(folder)).length, 3)
  })

  it('makes one run in a named folder, and refuses a second', async () => {
    const dir = join(parent, 'named')
    await RunDirectory.createAt(dir, 'demo', 'version: 1\n')
    await assert.rejects(RunDirectory.createAt(dir, 'demo', 'version: 2\n'), (error) => UnslothError.is(error, 'RUN_BUSY'))
    assert.equal(RunDirectory.open(dir).recipe(), 'version: 1\n')
  })

  it('says what is wrong with a folder that is not a run', () => {
    const invalid = (dir: string, pattern: RegExp): void =>
      assert.throws(
        () => RunDirectory.open(dir),
        (error) => UnslothError.is(error, 'RUN_INVALID') && pattern.test(error.message),
      )
    invalid(join(parent, 'none'), /not a run directory/)
    const dir = fresh().dir
    for (const [text, pattern] of [
      ['{"ver', /status\.json: damaged/],
      ['[]', /status\.json/],
      ['{"version":9}', /newer version \(format 9\)/],
      ['{"version":1,"name":"x","state":"flying"}', /state/],
    ] as const) {
      fs.writeFileSync(join(dir, 'status.json'), text)
      invalid(dir, pattern)
    }
  })

  it('has one writer, whose process is named to others', async () => {
    const run = fresh()
    const writer = await run.lock()
    await assert.rejects(
      run.lock(),
      (error) => UnslothError.is(error, 'RUN_BUSY') && error.message.includes(`process ${process.pid} on `),
    )
    await writer.close()
    await (await run.lock()).close()
  })

  it('carries a run from queue to end, and readers see each state', async () => {
    const run = fresh()
    const reader = RunReader.open(run.dir)
    const writer = await run.lock()
    writer.begin('preparing')
    assert.throws(() => writer.setState('training'), /cannot go from preparing to training/)
    writer.setState('loading', { detail: 'weights', device: 'cpu', plannedBytes: 1000 })
    assert.deepEqual(await reader.view().then(({ state, alive, status }) => [state, alive, status.detail]), [
      'loading',
      true,
      'weights',
    ])
    writer.setState('training', { totalSteps: 3 })
    for (let step = 1; step <= 3; step++) {
      writer.appendMetrics(stepRecord(step))
      writer.progress({ step, loss: 1 / step, epoch: step / 3 })
    }
    writer.warn('90 % of the labels are masked')
    writer.warn('90 % of the labels are masked')
    writer.setState('saving')
    writer.addOutput('adapter', join(run.dir, 'adapter'))
    writer.addOutput('merged', '/elsewhere/merged')
    writer.setState('finished')
    writer.log('done\nwith hf_AbCdEfGhIjKlMnOp')
    await writer.close()
    const { status, state, alive, resumable } = await reader.view()
    assert.deepEqual(
      [state, alive, resumable, status.step, status.totalSteps, status.attempt],
      ['finished', false, false, 3, 3, 1],
    )
    assert.deepEqual(status.outputs, [
      { kind: 'adapter', path: 'adapter' },
      { kind: 'merged', path: '/elsewhere/merged' },
    ])
    assert.equal(status.warnings.length, 1)
    assert.ok(status.endedAt !== null && status.startedAt !== null)
    assert.deepEqual([...(await reader.readMetrics()).steps.columns.step], [1, 2, 3])
    assert.match(await reader.tail(2), /^\d{4}-\d\d-\d\dT[\d:.]+Z done\n {4}with <redacted>$/)
    assert.deepEqual(fs.readdirSync(run.dir).sort(), ['.lock', 'log.txt', 'metrics.jsonl', 'recipe.yaml', 'status.json'])
  })

  it('writes progress in the background, and the last of it on close', async () => {
    const run = fresh()
    const writer = await run.lock()
    writer.begin()
    for (let step = 1; step <= 500; step++) writer.progress({ step })
    await writer.close()
    assert.equal((await run.reader().status()).step, 500)
  })

  it('keeps why a run failed', async () => {
    const run = fresh()
    const writer = await run.lock()
    writer.begin()
    writer.fail(new UnslothError('NON_FINITE', 'loss is NaN at step 4', { hint: 'Lower learning_rate.' }), {
      step: 4,
      tensor: 'lm_head',
    })
    await writer.close()
    const { status, state } = await run.reader().view()
    assert.equal(state, 'failed')
    assert.deepEqual(status.error, {
      code: 'NON_FINITE',
      message: 'loss is NaN at step 4',
      hint: 'Lower learning_rate.',
      tensor: 'lm_head',
      step: 4,
    })
    assert.deepEqual(
      (await run.reader().readMetrics()).events.map(({ event }) => event),
      ['fail'],
    )
  })

  it('is interrupted when its process is gone, and resumes from the newest checkpoint', async () => {
    const run = fresh()
    const writer = await run.lock()
    writer.begin()
    writer.setState('loading')
    writer.setState('training')
    for (let step = 1; step <= 7; step++) {
      writer.appendMetrics(stepRecord(step))
      writer.progress({ step })
      if (step % 2 === 0) {
        const draft = writer.beginCheckpoint(step)
        fs.writeFileSync(join(draft.path, 'state.bin'), `state ${step}`)
        draft.commit({ loss: 1 })
      }
    }
    const heartbeat = run.reader().heartbeat()
    assert.equal(heartbeat?.pid, process.pid)
    await writer.close()
    // As a dead process leaves it: a heartbeat of a process that does not exist any more.
    fs.writeFileSync(run.path('heartbeat'), JSON.stringify({ ...heartbeat, startTime: 'earlier' }))
    const view = await run.reader().view()
    assert.deepEqual([view.state, view.alive, view.resumable, view.checkpoint?.step], ['interrupted', false, true, 6])
    const second = await run.lock()
    second.begin('queued')
    second.resumeFrom(second.latestCheckpoint()!.step)
    second.setState('loading')
    second.setState('training')
    second.appendMetrics(stepRecord(7))
    assert.deepEqual(
      await run
        .reader()
        .view()
        .then(({ state, status }) => [state, status.attempt]),
      ['training', 2],
    )
    await second.close()
    const { steps, events } = await run.reader().readMetrics()
    assert.deepEqual([...steps.columns.step], [1, 2, 3, 4, 5, 6, 7])
    assert.deepEqual(
      events.map(({ event, step }) => [event, step]),
      [['resume', 6]],
    )
  })

  it('refuses to write after another process took over', async () => {
    const run = fresh()
    const writer = await run.lock()
    await writer.close()
    assert.throws(() => writer.appendMetrics(stepRecord(1)), /closed/)
  })

  it('tells watchers what has changed', async () => {
    const run = fresh()
    const seen = new Set<RunAspect>()
    let wake: () => void = () => undefined
    const watcher = run.reader().watch(
      (changed) => {
        for (const aspect of changed) seen.add(aspect)
        wake()
      },
      { interval: 20, settle: 5 },
    )
    const until = async (...aspects: RunAspect[]): Promise<void> => {
      while (!aspects.every((aspect) => seen.has(aspect))) await new Promise<void>((resolve) => (wake = resolve))
    }
    await new Promise((resolve) => setTimeout(resolve, 50))
    const writer = await run.lock()
    writer.begin()
    writer.appendMetrics(stepRecord(1))
    await until('status', 'metrics', 'log', 'liveness')
    writer.beginCheckpoint(1).commit()
    await until('checkpoints')
    watcher.dispose()
    await writer.close()
    assert.ok(seen.has('checkpoints'))
  })

  it('lists runs, newest first, and leaves out what is none', async () => {
    const folder = join(parent, 'list')
    for (const minute of [1, 3, 2])
      RunDirectory.create(folder, `m${minute}`, 'version: 1\n', { now: new Date(2026, 0, 1, 0, minute) })
    fs.mkdirSync(join(folder, 'other'))
    assert.deepEqual(
      (await listRuns(folder)).map(({ status }) => status.name),
      ['m3', 'm2', 'm1'],
    )
    assert.deepEqual(await listRuns(join(folder, 'none')), [])
  })
})
