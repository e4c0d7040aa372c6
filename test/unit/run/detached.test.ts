import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { UnslothError } from '#shared/errors.ts'
import { connectToRun, withRun } from '../../../engine/run/controlClient.ts'
import { detachedEnvironment, launchRun } from '../../../engine/run/detached.ts'
import { killTree } from '../../../engine/run/killTree.ts'
import { processStartTime, readProcStat } from '../../../engine/run/processInfo.ts'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { bundleChild, ownRuntimeFolder, temporaryFolder } from './support.ts'

describe('detached runs', () => {
  const parent = temporaryFolder()
  ownRuntimeFolder(parent)
  let entry = ''
  let launcher = ''
  before(async () => {
    entry = await bundleChild('shortRun', parent)
    launcher = await bundleChild('launcher', parent)
  })
  const create = (what: string): RunDirectory => RunDirectory.create(parent, what, `${what}\n`)
  const gone = async (pid: number): Promise<void> => {
    while ((await processStartTime(pid)) !== undefined) await new Promise((resolve) => setTimeout(resolve, 5))
  }

  it('outlive whoever started them, in a group of their own, and stop when asked', async () => {
    const run = create('wait')
    const starter = spawn(process.execPath, [launcher, entry, run.dir], { detached: true, stdio: ['ignore', 'pipe', 'inherit'] })
    const pid = Number(
      await new Promise<string>((resolve) => starter.stdout.once('data', (data: Buffer) => resolve(data.toString()))),
    )
    await new Promise((resolve) => (starter.exitCode === null ? starter.once('exit', resolve) : resolve(0)))
    try {
      process.kill(-starter.pid!, 'SIGKILL')
    } catch {
      // The starter's whole group has gone, which is the point.
    }
    const stat = readProcStat(pid)
    if (stat !== undefined) assert.deepEqual([stat.group, stat.session], [pid, pid])
    const view = await run.reader().view()
    assert.deepEqual([view.alive, view.heartbeat?.pid], [true, pid])
    let control
    while (control === undefined) control = await connectToRun(run.dir).catch(() => undefined)
    await control.stop({ save: false })
    await control.closed
    await gone(pid)
    assert.equal((await run.reader().view()).state, 'stopped')
    await assert.rejects(
      withRun(run.dir, (other) => other.status()),
      /the run has ended \(stopped\)/,
    )
    assert.equal(fs.readFileSync(run.path('stdout'), 'utf8'), `cwd ${fs.realpathSync(run.dir)}\n`)
  })

  it('may end before anyone looks', async () => {
    const run = create('quick')
    await launchRun(run.dir, { entry })
    while ((await run.reader().view()).state !== 'stopped') await new Promise((resolve) => setTimeout(resolve, 5))
    assert.equal((await run.reader().status()).attempt, 1)
  })

  it('report why they could not begin', async () => {
    const crash = create('crash')
    await assert.rejects(
      launchRun(crash.dir, { entry }),
      (error) =>
        UnslothError.is(error, 'INTERNAL') &&
        error.message.includes('ended with exit code 1 before it began') &&
        error.message.includes('the addon does not load') &&
        error.hint?.includes('stdout.log') === true,
    )
    await assert.rejects(launchRun(create('wait').dir, { entry: `${entry}.none` }), /Cannot find module/)
    await assert.rejects(launchRun(create('wait').dir, { entry, execPath: '/no/such/runtime' }), /could not be started/)
    await assert.rejects(launchRun(parent, { entry }), (error) => UnslothError.is(error, 'RUN_INVALID'))
  })

  it('report a failure of the first moments with its own code and hint, at the latest in the status', async () => {
    const run = create('fail')
    const seen = await launchRun(run.dir, { entry }).then(
      async ({ pid }) => {
        await gone(pid)
        return (await run.reader().status()).error
      },
      (error: unknown) => error as UnslothError,
    )
    assert.deepEqual([seen?.code, seen?.message, seen?.hint], ['DATA', 'train.jsonl: empty', 'Add rows.'])
  })

  it('get an environment that does not tie them to the editor', () => {
    const env = detachedEnvironment({
      PATH: '/bin',
      HF_TOKEN: 'x',
      ELECTRON_RUN_AS_NODE: '1',
      VSCODE_IPC_HOOK: 'y',
      VSCODE_INSPECTOR_OPTIONS: '{}',
      NODE_CHANNEL_FD: '3',
      NODE_OPTIONS: '--require /x/ms-vscode.js-debug/bootloader.js',
    })
    assert.deepEqual(env, { PATH: '/bin', HF_TOKEN: 'x', ELECTRON_RUN_AS_NODE: '1' })
    assert.equal(detachedEnvironment({ NODE_OPTIONS: '--max-old-space-size=4096' }).NODE_OPTIONS, '--max-old-space-size=4096')
  })

  it("are spared when a client's children are killed, those are not", async () => {
    const run = create('tree')
    const child = spawn(process.execPath, [entry, 'run', run.dir], { stdio: 'ignore' })
    const exited = new Promise((resolve) => child.once('exit', (_code, signal) => resolve(signal)))
    const children = (): number[] =>
      fs.readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number)
    while (children().length < 2) await new Promise((resolve) => setTimeout(resolve, 5))
    const pids = children()
    // A child becomes the leader of its group between fork and exec.
    const lone = (): number[] => pids.filter((pid) => readProcStat(pid)?.group === pid)
    while (lone().length < 1) await new Promise((resolve) => setTimeout(resolve, 5))
    const detached = lone()[0]!
    const attached = pids.find((pid) => pid !== detached)!
    await killTree(child.pid!, 200)
    assert.equal(await exited, 'SIGKILL')
    await gone(attached)
    assert.notEqual(await processStartTime(detached), undefined)
    process.kill(detached, 'SIGKILL')
  })
})
