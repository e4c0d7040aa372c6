import { spawn } from 'node:child_process'
import { UnslothError } from '#shared/errors.ts'
import { ControlSocket } from '../../../../engine/run/controlSocket.ts'
import { RunDirectory } from '../../../../engine/run/runDirectory.ts'

/** `run DIR`: does what the recipe's text says; `wait` until it is told to stop. */
async function main(): Promise<void> {
  const [command, dir] = process.argv.slice(2)
  // A test that fails leaves nothing behind.
  setTimeout(() => process.exit(2), 30_000).unref()
  if (command !== 'run') throw new Error(`run expected, not ${command}`)
  const run = RunDirectory.open(dir!)
  const what = run.recipe().trim()
  if (what === 'crash') throw new Error('the addon does not load')
  const writer = await run.lock()
  writer.begin()
  console.log(`cwd ${process.cwd()}`)
  if (what === 'fail') {
    writer.fail(new UnslothError('DATA', 'train.jsonl: empty', { hint: 'Add rows.' }))
    await writer.close()
    process.exit(1)
  }
  if (what === 'wait') {
    await new Promise<void>((resolve) => {
      void ControlSocket.open(run.dir, {
        stop: () => {
          setTimeout(resolve, 5)
          return { state: 'preparing', step: 0 }
        },
        pause: () => ({ state: 'paused', step: 0 }),
        resume: () => ({ state: 'preparing', step: 0 }),
        status: () => writer.status,
      })
    })
  }
  if (what === 'tree') {
    process.on('SIGTERM', () => undefined)
    spawn(process.execPath, ['-e', 'setTimeout(() => {}, 30000)'], { stdio: 'ignore' })
    spawn(process.execPath, ['-e', 'setTimeout(() => {}, 30000)'], { stdio: 'ignore', detached: true })
    setTimeout(() => undefined, 30_000)
    return
  }
  writer.setState('stopped')
  await writer.close()
  process.exit(0)
}

void main()
