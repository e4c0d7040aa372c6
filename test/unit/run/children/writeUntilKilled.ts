import fs from 'node:fs'
import { join } from 'node:path'
import { RunDirectory } from '../../../../engine/run/runDirectory.ts'
import { stepRecord } from './stepRecord.ts'

/** A trainer without a model: resumes, logs, saves and changes state as fast as it can, until it is killed. */
async function main(): Promise<void> {
  const writer = await RunDirectory.open(process.argv[2]!).lock()
  writer.begin('preparing')
  let step = writer.latestCheckpoint()?.step ?? 0
  writer.resumeFrom(step)
  writer.setState('loading')
  writer.setState('training')
  for (;;) {
    step++
    writer.appendMetrics(stepRecord(step))
    writer.progress({ step, loss: 1 / step })
    writer.log(`step ${step}`)
    if (step % 3 !== 0) continue
    writer.setState('saving')
    const draft = writer.beginCheckpoint(step)
    for (const part of ['a', 'b']) fs.writeFileSync(join(draft.path, part), `${step}\n`.repeat(20_000))
    draft.commit({ loss: 1 / step })
    writer.appendEvent('checkpoint', { step })
    writer.pruneCheckpoints(2)
    writer.setState('training')
    await new Promise(setImmediate)
  }
}

void main()
