import { createInterface } from 'node:readline'
import fs from 'node:fs'
import { join } from 'node:path'
import type { StepRecord } from '#shared/metrics.ts'
import { RunDirectory } from '../../../../engine/run/runDirectory.ts'

/** A logged step as the trainer writes it; a function of the step alone. */
const stepRecord = (step: number): StepRecord => ({
  type: 'step',
  step,
  epoch: step / 100,
  loss: 3 / step,
  learning_rate: 1e-4,
  grad_norm: 1,
  num_tokens: step * 512,
  tokens_per_second: 1_000,
  time: 1_700_000_000_000 + step * 100,
})

/**
 * A trainer without a model that does what stands in its input: `train N` logs N steps, `checkpoint`, `nan`, `end`. It
 * resumes from the newest checkpoint and answers every line with the step it has come to.
 */
async function main(): Promise<void> {
  setTimeout(() => process.exit(2), 60_000).unref()
  const writer = await RunDirectory.open(process.argv[2]!).lock()
  writer.begin('preparing')
  let step = writer.latestCheckpoint()?.step ?? 0
  writer.resumeFrom(step)
  writer.setState('loading', { totalSteps: 1_000 })
  writer.setState('training')
  console.log(step)
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, count = '1'] = line.split(' ')
    if (command === 'end') break
    if (command === 'train') for (let i = 0; i < Number(count); i++) writer.appendMetrics(stepRecord(++step))
    if (command === 'nan') writer.appendMetrics({ ...stepRecord(++step), loss: NaN })
    if (command === 'checkpoint') {
      const draft = writer.beginCheckpoint(step)
      fs.writeFileSync(join(draft.path, 'weights'), 'x')
      draft.commit({})
      writer.appendEvent('checkpoint', { step })
    }
    writer.progress({ step })
    console.log(step)
  }
  writer.setState('finished')
  await writer.close()
  process.exit(0)
}

void main()
