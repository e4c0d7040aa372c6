import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { RunTracker, RunTrackers } from '../../../src/training/runTracker.ts'

const quick = { interval: 40, settle: 10 }

describe('following a run directory', function () {
  let folder: string
  let program: string
  let number = 0
  const children = new Set<ChildProcess>()
  const trackers = new Set<RunTracker>()

  before(async () => {
    folder = fs.mkdtempSync(join(tmpdir(), 'unsloth-tracker-'))
    program = join(folder, 'slowTrainer.cjs')
    await build({
      entryPoints: [fileURLToPath(new URL('children/slowTrainer.ts', import.meta.url))],
      outfile: program,
      bundle: true,
      platform: 'node',
      format: 'cjs',
      target: 'node20',
      logLevel: 'silent',
    })
  })
  after(() => fs.rmSync(folder, { recursive: true, force: true }))
  afterEach(() => {
    for (const tracker of trackers) tracker.dispose()
    for (const child of children) child.kill('SIGKILL')
    trackers.clear()
    children.clear()
  })

  const newRun = (): string => RunDirectory.create(folder, `run ${++number}`, 'model: x\n').dir
  const track = (dir: string): RunTracker => {
    const tracker = new RunTracker(dir, quick)
    trackers.add(tracker)
    return tracker
  }

  /** A trainer in a process of its own, to be told what to do. */
  async function trainer(dir: string) {
    const child = spawn(process.execPath, [program, dir], { stdio: ['pipe', 'pipe', 'inherit'] })
    children.add(child)
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const answer = async (): Promise<number> => Number((await lines.next()).value)
    await answer()
    return {
      tell: (line: string): Promise<number> => {
        child.stdin.write(`${line}\n`)
        return answer()
      },
      end: async () => {
        child.stdin.write('end\n')
        await once(child, 'exit')
      },
      kill: async () => {
        child.kill('SIGKILL')
        await once(child, 'exit')
      },
    }
  }

  /** Resolves when the condition holds after a change that the tracker tells of. */
  async function until(tracker: RunTracker, what: string, condition: () => boolean): Promise<void> {
    if (condition()) return
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${what} did not come: ${JSON.stringify(tracker.info())}`)), 60_000)
      const listener = tracker.onDidChange(() => {
        if (!condition()) return
        clearTimeout(timer)
        listener.dispose()
        resolve()
      })
    })
  }

  it('follows what another process writes, to its end', async () => {
    const dir = newRun()
    const tracker = track(dir)
    await tracker.loaded
    assert.equal(tracker.info().state, 'queued')
    assert.equal(tracker.info().rows, 0)
    const process = await trainer(dir)
    await process.tell('train 10')
    await until(tracker, 'the steps', () => tracker.series.steps.length === 10)
    assert.equal(tracker.info().alive, true)
    assert.equal(tracker.info().step, 10)
    assert.ok(Math.abs(tracker.info().loss! - 0.3) < 1e-9)
    assert.equal(tracker.info().totalSteps, 1_000)
    await process.tell('train 5')
    await process.tell('nan')
    await until(tracker, 'further steps', () => tracker.series.steps.length === 16)
    assert.equal(tracker.info().loss, null)
    assert.equal(tracker.info().nonFiniteSteps, 1)
    await process.end()
    await until(tracker, 'the end', () => tracker.info().state === 'finished' && !tracker.info().alive)
    assert.deepEqual(
      [...tracker.series.steps.column('step')!.subarray(0, 16)],
      Array.from({ length: 16 }, (_, i) => i + 1),
    )
  })

  it('shows a lost run as interrupted and follows it when it is resumed from an earlier step', async () => {
    const dir = newRun()
    const first = await trainer(dir)
    const tracker = track(dir)
    await first.tell('train 8')
    await first.tell('checkpoint')
    await first.tell('train 12')
    await until(tracker, 'the steps', () => tracker.series.steps.length === 20)
    await first.kill()
    await until(tracker, 'the loss of the process', () => tracker.info().state === 'interrupted')
    assert.equal(tracker.info().resumable, true)
    assert.equal(tracker.info().checkpointStep, 8)
    assert.equal(tracker.info().rows, 20, 'its curves stay')

    const second = await trainer(dir)
    await second.tell('train 3')
    await until(tracker, 'the resume', () => tracker.series.steps.length === 11)
    assert.ok(tracker.series.generation > 0)
    assert.deepEqual([...tracker.series.steps.column('step')!.subarray(0, 11)], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert.deepEqual(
      tracker.series.events.map(({ event }) => event),
      ['checkpoint', 'resume'],
    )
    await until(tracker, 'the state', () => tracker.info().state === 'training')
    assert.equal(tracker.info().attempt, 2)
    await second.end()
  })

  it('can be done by any number of trackers at once, which agree', async () => {
    const dir = newRun()
    const process = await trainer(dir)
    const windows = [track(dir), track(dir), track(dir)]
    await process.tell('train 400')
    await Promise.all(windows.map((tracker) => until(tracker, 'the steps', () => tracker.series.steps.length === 400)))
    await process.end()
    await Promise.all(windows.map((tracker) => until(tracker, 'the end', () => tracker.info().state === 'finished')))
    for (const tracker of windows) {
      assert.deepEqual(tracker.series.steps.column('loss')!.slice(0, 400), windows[0]!.series.steps.column('loss')!.slice(0, 400))
    }
  })

  it('keeps several runs apart and shares one tracker among those who show a run', async () => {
    const [a, b] = [newRun(), newRun()]
    const pool = new RunTrackers(quick)
    const [first, again, other] = [pool.acquire(a), pool.acquire(`${a}/../${a.split('/').at(-1)}`), pool.acquire(b)]
    assert.equal(first.tracker, again.tracker)
    assert.notEqual(first.tracker, other.tracker)
    first.dispose()
    first.dispose()
    assert.equal(pool.acquire(a).tracker, again.tracker, 'one of its users is still there')
    again.dispose()
    pool.dispose()
    const fresh = pool.acquire(a)
    assert.notEqual(fresh.tracker, first.tracker)
    fresh.dispose()
    await Promise.resolve()
  })

  it('says what is wrong with a folder that is no run, and keeps the curves of one that was deleted', async () => {
    const none = track(join(folder, 'nothing here'))
    await none.loaded
    assert.equal(none.info().state, 'missing')
    assert.match(none.info().problem!, /not a run directory/)
    assert.equal(none.info().name, 'nothing here')

    const dir = newRun()
    fs.writeFileSync(
      join(dir, 'metrics.jsonl'),
      '{"type":"step","step":1,"epoch":0,"loss":2}\nnonsense\n{"type":"step","step":2,"epo',
    )
    const tracker = track(dir)
    await tracker.loaded
    assert.equal(tracker.series.steps.length, 1)
    assert.equal(tracker.info().invalidLines, 1)
    fs.appendFileSync(join(dir, 'metrics.jsonl'), 'ch":0,"loss":1.5}\n')
    await until(tracker, 'the rest of the line', () => tracker.series.steps.length === 2)
    fs.rmSync(dir, { recursive: true })
    await until(tracker, 'the deletion', () => tracker.info().state === 'missing')
    assert.equal(tracker.series.steps.length, 2)
    fs.mkdirSync(dir)
    await tracker.refresh()
    assert.equal(tracker.info().state, 'missing')
  })

  it('reads a long file in portions and tells of each', async () => {
    const dir = newRun()
    const lines = Array.from(
      { length: 60_000 },
      (_, i) => `{"type":"step","step":${i + 1},"epoch":0.5,"loss":${(i % 97) / 10 + 1},"grad_norm":1}`,
    )
    fs.writeFileSync(join(dir, 'metrics.jsonl'), `${lines.join('\n')}\n`)
    const tracker = track(dir)
    const seen: boolean[] = []
    tracker.onDidChange(() => seen.push(tracker.info().loading))
    await tracker.loaded
    assert.equal(tracker.info().rows, 60_000)
    assert.ok(seen.length > 1 && seen[0] === true && seen.at(-1) === false, seen.join())
    const sketch = tracker.sketch(12)
    assert.equal(sketch.length, 12)
    assert.ok(
      sketch.every((mean) => Math.abs(mean - 5.8) < 0.1),
      sketch.join(),
    )
    assert.deepEqual(track(newRun()).sketch(5), [])
  })
})
