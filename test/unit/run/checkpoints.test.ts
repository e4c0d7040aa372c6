import assert from 'node:assert/strict'
import fs from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import {
  CheckpointDraft,
  checkpointName,
  listCheckpoints,
  newestCheckpoint,
  pruneCheckpoints,
  readCheckpoint,
  recoverCheckpoints,
} from '../../../engine/run/checkpoints.ts'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { smallDisk, stepRecord, temporaryFolder } from './support.ts'

describe('checkpoints', () => {
  const parent = temporaryFolder()
  let count = 0
  const fresh = (): string => join(parent, `c${count++}`)
  const save = (folder: string, step: number, content = `state ${step}`): void => {
    const draft = new CheckpointDraft(folder, step)
    fs.mkdirSync(join(draft.path, 'adapter'))
    fs.writeFileSync(join(draft.path, 'adapter', 'weights.bin'), content)
    fs.writeFileSync(join(draft.path, 'optimizer.bin'), 'xy')
    draft.commit({ epoch: step / 10, loss: NaN, evalLoss: 2 })
  }
  const steps = (folder: string): number[] => listCheckpoints(folder).map(({ step }) => step)
  const content = (folder: string, step: number): string =>
    fs.readFileSync(join(folder, checkpointName(step), 'adapter', 'weights.bin'), 'utf8')

  it('appear whole, with a manifest of their files', () => {
    const folder = fresh()
    const draft = new CheckpointDraft(folder, 5)
    fs.writeFileSync(join(draft.path, 'a.bin'), '1234')
    assert.deepEqual(steps(folder), [])
    const { path, bytes, files } = draft.commit()
    assert.deepEqual([path, bytes, files], [join(folder, 'step-000005'), 4, [{ path: 'a.bin', bytes: 4 }]])
    assert.deepEqual(fs.readdirSync(folder), ['step-000005'])
  })

  it('count only when complete', () => {
    const folder = fresh()
    for (const step of [999_999, 1_000_000, 3]) save(folder, step)
    assert.deepEqual(steps(folder), [3, 999_999, 1_000_000])
    assert.deepEqual(
      newestCheckpoint(folder)
        ?.files.map(({ path }) => path)
        .sort(),
      ['adapter/weights.bin', 'optimizer.bin'],
    )
    fs.truncateSync(join(folder, checkpointName(1_000_000), 'adapter', 'weights.bin'), 3)
    assert.equal(newestCheckpoint(folder)?.step, 999_999)
    fs.rmSync(join(folder, checkpointName(999_999), 'checkpoint.json'))
    assert.equal(newestCheckpoint(folder)?.step, 3)
    assert.equal(readCheckpoint(join(folder, 'none')), undefined)
    assert.equal(newestCheckpoint(join(folder, 'none')), undefined)
  })

  it('of one step replace each other', () => {
    const folder = fresh()
    save(folder, 1, 'old')
    save(folder, 1, 'newer')
    assert.equal(content(folder, 1), 'newer')
    assert.deepEqual(fs.readdirSync(folder), ['step-000001'])
  })

  it('are pruned from the oldest on, never the newest and never those to keep', () => {
    const folder = fresh()
    for (let step = 1; step <= 5; step++) save(folder, step)
    assert.deepEqual(pruneCheckpoints(folder, 3, [1]), [2])
    assert.deepEqual(steps(folder), [1, 3, 4, 5])
    assert.deepEqual(pruneCheckpoints(folder, 0), [1, 3, 4])
    assert.deepEqual(fs.readdirSync(folder), ['step-000005'])
  })

  it('recover from a replacement that was cut short, and lose what was unfinished', () => {
    const folder = fresh()
    save(folder, 4, 'good')
    fs.renameSync(join(folder, 'step-000004'), join(folder, '.replaced-step-000004-abc123'))
    fs.mkdirSync(join(folder, '.tmp-step-000005-abc123'))
    recoverCheckpoints(folder)
    assert.equal(content(folder, 4), 'good')
    save(folder, 6)
    fs.cpSync(join(folder, 'step-000006'), join(folder, '.replaced-step-000006-abc123'), { recursive: true })
    recoverCheckpoints(folder)
    assert.deepEqual(fs.readdirSync(folder).sort(), ['step-000004', 'step-000006'])
  })

  it('do not bring a deleted run directory back', () => {
    assert.throws(
      () => new CheckpointDraft(join(parent, 'deleted', 'checkpoints'), 1),
      (error) => UnslothError.is(error, 'FILE_WRITE'),
    )
    assert.equal(fs.existsSync(join(parent, 'deleted')), false)
  })
})

describe('a full disk', () => {
  const parent = temporaryFolder()

  it('stops every kind of write with FILE_WRITE and leaves what was there', async () => {
    const disk = smallDisk(Infinity)
    const run = RunDirectory.create(parent, 'full', 'version: 1\n')
    const writer = await run.lock({ disk })
    writer.begin()
    writer.appendMetrics(stepRecord(1))
    writer.log('fine')
    writer.beginCheckpoint(1).commit()
    const before = ['status.json', 'metrics.jsonl', 'log.txt'].map((name) => fs.readFileSync(join(run.dir, name), 'utf8'))
    const full = (act: () => unknown): void => {
      for (const room of [0, 20]) {
        disk.room = room
        assert.throws(
          act,
          (error) => UnslothError.is(error, 'FILE_WRITE') && error.message.includes('disk is full') && error.hint !== undefined,
        )
      }
    }
    full(() => writer.setState('loading'))
    full(() => writer.appendMetrics(stepRecord(2)))
    full(() => writer.log('does not fit, for it is longer than that'))
    full(() => writer.beginCheckpoint(2).commit())
    full(() => writer.beginCheckpoint(1).commit())
    assert.equal(writer.status.state, 'preparing')
    disk.room = Infinity
    assert.deepEqual(
      ['status.json', 'metrics.jsonl', 'log.txt'].map((name) => fs.readFileSync(join(run.dir, name), 'utf8')),
      before,
    )
    assert.deepEqual(
      run
        .reader()
        .checkpoints()
        .map(({ step }) => step),
      [1],
    )
    assert.deepEqual(fs.readdirSync(run.path('checkpoints')), ['step-000001'])
    assert.equal(
      fs.readdirSync(run.dir).some((name) => name.startsWith('.tmp-')),
      false,
    )
    writer.appendMetrics(stepRecord(2))
    await writer.close()
    assert.deepEqual([...(await run.reader().readMetrics()).steps.columns.step], [1, 2])
  })

  it('lets no half a run be created', () => {
    const folder = join(parent, 'none')
    const options = { disk: smallDisk(30) }
    assert.throws(
      () => RunDirectory.create(folder, 'x', 'version: 1\n', options),
      (error) => UnslothError.is(error, 'FILE_WRITE'),
    )
    assert.deepEqual(fs.readdirSync(folder), [])
  })

  it('does not hide why a run failed', async () => {
    const disk = smallDisk(Infinity)
    const run = RunDirectory.create(parent, 'failing', 'version: 1\n')
    const writer = await run.lock({ disk })
    writer.begin()
    disk.room = 0
    assert.equal(writer.fail(new UnslothError('FILE_WRITE', 'full')).code, 'FILE_WRITE')
    await writer.close()
    assert.equal((await run.reader().view()).state, 'interrupted')
  })
})
