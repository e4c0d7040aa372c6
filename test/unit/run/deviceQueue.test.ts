import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { acquireDevice, deviceOwner } from '../../../engine/run/deviceQueue.ts'
import { runtimeFolder } from '../../../engine/run/runtimeFolder.ts'
import { bundleChild, ownRuntimeFolder, temporaryFolder } from './support.ts'

describe('device queue', () => {
  const parent = temporaryFolder()
  ownRuntimeFolder(parent)
  const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 30))

  it('serves in the order of arrival, one at a time', async () => {
    const order: number[] = []
    let using = 0
    const first = await acquireDevice('cuda:0', 'run 0')
    const waits: number[][] = []
    const waiting: Promise<void>[] = []
    for (let i = 1; i <= 4; i++) {
      waiting.push(
        acquireDevice('cuda:0', `run ${i}`, { onWait: (ahead) => waits.push([i, ahead]) }).then(async (lease) => {
          order.push(i)
          assert.equal(++using, 1)
          await new Promise(setImmediate)
          using--
          lease.release()
        }),
      )
      while (!waits.some(([who, ahead]) => who === i && ahead === i)) await settled()
    }
    assert.equal((await deviceOwner('cuda:0'))?.purpose, 'run 0')
    const other = await acquireDevice('cuda:1', 'elsewhere')
    other.release()
    first.release()
    await Promise.all(waiting)
    assert.deepEqual(order, [1, 2, 3, 4])
    assert.equal(await deviceOwner('cuda:0'), undefined)
    assert.deepEqual(fs.readdirSync(join(runtimeFolder(), 'device-cuda-0', 'queue')), [])
  })

  it('gives a place up on request', async () => {
    const lease = await acquireDevice('cpu', 'first')
    const controller = new AbortController()
    const second = acquireDevice('cpu', 'second', { signal: controller.signal, onWait: () => controller.abort() })
    await assert.rejects(second, (error) => UnslothError.is(error, 'STOPPED'))
    const third = acquireDevice('cpu', 'third')
    lease.release()
    ;(await third).release()
    assert.equal(await deviceOwner('cpu'), undefined)
  })

  it('skips those that were killed, with the device or in the queue', async () => {
    const script = await bundleChild('holdDevice', parent)
    const holder = spawn(process.execPath, [script, 'cpu'], { stdio: ['ignore', 'pipe', 'inherit'] })
    await new Promise((resolve) => holder.stdout.once('data', resolve))
    const queued = spawn(process.execPath, [script, 'cpu'], { stdio: 'ignore' })
    const queue = join(runtimeFolder(), 'device-cpu', 'queue')
    const tickets = (): string[] => fs.readdirSync(queue).filter((name) => name.endsWith('.ticket'))
    while (tickets().length === 0) await settled()
    let ahead = 0
    const lease = acquireDevice('cpu', 'patient', { interval: 30, onWait: (count) => (ahead = Math.max(ahead, count)) })
    while (ahead < 2) await settled()
    queued.kill('SIGKILL')
    holder.kill('SIGKILL')
    assert.equal((await lease).device, 'cpu')
    assert.equal((await deviceOwner('cpu'))?.pid, process.pid)
    ;(await lease).release()
  })
})
