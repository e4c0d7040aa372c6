import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { join } from 'node:path'
import { ExclusiveLock } from '../../../engine/run/exclusiveLock.ts'
import { isProcessAlive, processStartTime, thisProcess } from '../../../engine/run/processInfo.ts'
import { temporaryFolder } from './support.ts'

describe('process identity', () => {
  it('tells a living process from a dead one and from a later one of the same pid', async () => {
    const here = await thisProcess()
    assert.equal(here.pid, process.pid)
    assert.equal(await isProcessAlive(here), true)
    assert.equal(await isProcessAlive({ ...here, startTime: `${here.startTime}0` }), false)
    assert.equal(await isProcessAlive({ ...here, machine: 'elsewhere' }), undefined)
    const { pid } = spawnSync(process.execPath, ['-e', '0'])
    assert.equal(await processStartTime(pid), undefined)
  })

  it('takes a process for dead that its parent has not collected', async () => {
    // The shell's child ends while the shell, replaced by sleep, never waits for it.
    const child = spawn('sh', ['-c', 'sleep 0.05 & echo $!; exec sleep 20'])
    const pid = await new Promise<number>((resolve) =>
      child.stdout.once('data', (data: Buffer) => resolve(Number(data.toString()))),
    )
    while ((await processStartTime(pid)) !== undefined) await new Promise(setImmediate)
    assert.equal(process.kill(pid, 0), true)
    child.kill('SIGKILL')
  })
})

describe('ExclusiveLock', () => {
  const parent = temporaryFolder()
  let count = 0
  const fresh = (): string => join(parent, `lock${count++}`)
  const take = async (folder: string): Promise<ExclusiveLock> => {
    const lock = await ExclusiveLock.acquire(folder, 'test')
    assert.ok(lock instanceof ExclusiveLock)
    return lock
  }
  const files = (folder: string): string[] => fs.readdirSync(folder).sort()
  const writeOwner = async (folder: string, generation: number, change: object): Promise<void> => {
    fs.mkdirSync(folder, { recursive: true })
    fs.writeFileSync(
      join(folder, `${generation}.json`),
      JSON.stringify({ ...(await thisProcess()), held: true, purpose: 'other', ...change }),
    )
  }

  it('is held by one at a time and names the owner', async () => {
    const folder = fresh()
    const lock = await take(folder)
    const owner = await ExclusiveLock.acquire(folder, 'second')
    assert.ok(!(owner instanceof ExclusiveLock))
    assert.deepEqual([owner.pid, owner.purpose], [process.pid, 'test'])
    assert.equal(lock.isHeld, true)
    lock.release()
    lock.release()
    assert.equal(await ExclusiveLock.owner(folder), undefined)
    const next = await take(folder)
    assert.equal(lock.isHeld, false)
    assert.equal(next.isHeld, true)
    assert.deepEqual(files(folder), ['2.json'])
  })

  it('goes to exactly one of many who want it at once', async () => {
    const folder = fresh()
    await writeOwner(folder, 4, { startTime: 'an earlier process' })
    const results = await Promise.all(Array.from({ length: 30 }, () => ExclusiveLock.acquire(folder, 'test')))
    const winners = results.filter((result) => result instanceof ExclusiveLock)
    assert.equal(winners.length, 1)
    assert.equal(winners[0]!.isHeld, true)
    assert.deepEqual(files(folder), ['5.json'])
  })

  it('is taken over from a dead process and from a silent one elsewhere, not from one that shows life', async () => {
    const folder = fresh()
    await writeOwner(folder, 1, { machine: 'elsewhere', host: 'node7' })
    const owner = await ExclusiveLock.acquire(folder, 'test')
    assert.ok(!(owner instanceof ExclusiveLock) && owner.host === 'node7')
    const past = new Date(Date.now() - 120_000)
    fs.utimesSync(join(folder, '1.json'), past, past)
    await take(folder)
    const damaged = fresh()
    fs.mkdirSync(damaged)
    fs.writeFileSync(join(damaged, '1.json'), '')
    assert.ok(!((await ExclusiveLock.acquire(damaged, 'test')) instanceof ExclusiveLock))
    fs.utimesSync(join(damaged, '1.json'), past, past)
    await take(damaged)
  })

  it('stands back when a higher number appears', async () => {
    const folder = fresh()
    const lock = await take(folder)
    await writeOwner(folder, 9, {})
    assert.equal(lock.isHeld, false)
    lock.release()
    assert.equal((await ExclusiveLock.owner(folder))?.purpose, 'other')
  })

  it("comes back when its folder was swept away, unless it is another one's by then", async () => {
    const folder = fresh()
    const lock = await take(folder)
    fs.rmSync(folder, { recursive: true })
    lock.touch()
    assert.equal(lock.isHeld, true)
    fs.rmSync(folder, { recursive: true })
    await writeOwner(folder, 3, {})
    lock.touch()
    assert.equal(lock.isHeld, false)
    assert.deepEqual(files(folder), ['3.json'])
  })

  it('can be given back on a full disk', async () => {
    const folder = fresh()
    const disk = {
      ...fs,
      full: false,
      openSync: ((path: fs.PathLike, flags: fs.OpenMode, mode?: fs.Mode) => {
        if (disk.full) throw Object.assign(new Error('full'), { code: 'ENOSPC' })
        return fs.openSync(path, flags, mode)
      }) as typeof fs.openSync,
    }
    const lock = await ExclusiveLock.acquire(folder, 'test', disk)
    assert.ok(lock instanceof ExclusiveLock)
    disk.full = true
    lock.release()
    assert.equal(await ExclusiveLock.owner(folder), undefined)
  })

  it('works on a file system without hard links', async () => {
    const folder = fresh()
    const disk = {
      ...fs,
      linkSync: () => {
        throw Object.assign(new Error('no links'), { code: 'EPERM' })
      },
    }
    const results = await Promise.all(Array.from({ length: 10 }, () => ExclusiveLock.acquire(folder, 'test', disk)))
    assert.equal(results.filter((result) => result instanceof ExclusiveLock).length, 1)
  })
})
