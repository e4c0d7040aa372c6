import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { decodeMetric } from '#shared/metrics.ts'
import { runStatusSchema } from '#shared/runState.ts'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { bundleChild, temporaryFolder } from './support.ts'

describe('kill −9 of a writer', () => {
  const parent = temporaryFolder()

  /** Kills the child `delay` ms after it has become the owner, which its heartbeat or first log line shows. */
  async function runAndKill(script: string, run: RunDirectory, delay: number): Promise<void> {
    const attempts = (await run.reader().status()).attempt
    const child = spawn(process.execPath, [script, run.dir], { stdio: ['ignore', 'ignore', 'pipe'] })
    let errors = ''
    child.stderr.on('data', (data: Buffer) => (errors += data.toString()))
    const exited = new Promise<NodeJS.Signals | null>((resolve) => child.once('exit', (_code, signal) => resolve(signal)))
    while ((await run.reader().status()).attempt === attempts && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 2))
    await new Promise((resolve) => setTimeout(resolve, delay))
    child.kill('SIGKILL')
    assert.equal(await exited, 'SIGKILL', errors)
  }

  async function checkFiles(run: RunDirectory): Promise<number> {
    const view = await run.reader().view()
    assert.equal(view.state, 'interrupted')
    runStatusSchema.parse(JSON.parse(fs.readFileSync(run.path('status'), 'utf8')))
    const { steps, events, invalid } = await run.reader().readMetrics()
    assert.equal(invalid, 0)
    // As of one process: each step once, in order.
    assert.deepEqual(
      [...steps.columns.step],
      Array.from({ length: steps.length }, (_, i) => i + 1),
    )
    for (const { event, step } of events) if (event === 'checkpoint') assert.ok(step <= steps.length)
    const checkpoints = run.reader().checkpoints()
    for (const { step, path } of checkpoints) {
      for (const part of ['a', 'b']) assert.equal(fs.readFileSync(join(path, part), 'utf8'), `${step}\n`.repeat(20_000))
      assert.ok(step <= steps.length, 'metrics reach as far as the checkpoint')
    }
    // Two are kept; a kill between commit and pruning can leave one more, in each of two rounds in a row.
    if (steps.length >= 4) assert.ok(checkpoints.length >= 1 && checkpoints.length <= 5, String(checkpoints.length))
    return checkpoints.at(-1)?.step ?? 0
  }

  it('at twenty moments and more leaves whole files, a valid checkpoint and a lock that can be taken over', async () => {
    const script = await bundleChild('writeUntilKilled', parent)
    const run = RunDirectory.create(parent, 'killed', 'version: 1\n')
    let newest = 0
    let round = 0
    for (; round < 20 || newest <= 3; round++) {
      // A machine that is too slow for these delays gets longer ones.
      await runAndKill(script, run, (2 + ((round * 37) % 83) + Math.random() * 5) * (1 + Math.floor(round / 20)))
      const now = await checkFiles(run)
      assert.ok(now >= newest, `the newest checkpoint went back from ${newest} to ${now}`)
      newest = now
    }
    const writer = await run.lock()
    assert.equal(writer.status.attempt, round)
    writer.resumeFrom(newest)
    await writer.close()
    for (const file of ['metrics.jsonl', 'log.txt']) assert.ok(fs.readFileSync(join(run.dir, file), 'utf8').endsWith('\n'))
    const lines = fs.readFileSync(run.path('metrics'), 'utf8').trimEnd().split('\n')
    assert.ok(lines.every((line) => (decodeMetric(line)?.step ?? Infinity) <= newest))
    const litter = [...fs.readdirSync(run.dir), ...fs.readdirSync(run.path('checkpoints'))].filter((name) =>
      /^\.(tmp|replaced)/.test(name),
    )
    assert.deepEqual(litter, [])
  })
})
