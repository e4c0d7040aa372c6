import assert from 'node:assert/strict'
import { madeUpBatch } from '../../engine/bench/batches.ts'
import { shapeModel } from '../../engine/bench/shapes.ts'
import { madeUpModel } from '../../engine/bench/step.ts'
import { cpuTarget, type Target } from '../../engine/graph/target.ts'
import { patchModel, type Training } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import type { HostWeight } from '../../engine/runtime/weightArena.ts'
import { Trainer } from '../../engine/train/trainer.ts'
import { planTraining, type TrainingPlan } from '../../engine/train/trainingPlan.ts'

/** Plans as for a GPU, in numbers that a processor computes: it runs them with both kinds of memory in its own. */
const target: Target = { ...cpuTarget(), kind: 'cuda' }
const lora: Training = { kind: 'lora', r: 8, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }

interface Asked {
  readonly training?: Training
  readonly hostWeights?: readonly HostWeight[]
  readonly availableBytes?: number
}

async function losses({
  training = lora,
  hostWeights = [],
  availableBytes = Infinity,
}: Asked): Promise<{ losses: number[]; evaluated: number; plan: TrainingPlan; moved: number }> {
  const patched = patchModel(shapeModel('stories15m', 'BF16', 2), training, target, { hostWeights })
  const plan = planTraining(patched, {
    checkpointing: 'none',
    paged: true,
    longestSample: 24,
    longestStep: 24,
    sequences: 1,
    evaluates: true,
    availableBytes,
    threads: 1,
  })
  const runtime = new Runtime({ kind: 'cpu', threads: 2 })
  try {
    const trainer = new Trainer(await madeUpModel(patched, runtime), plan, {
      seed: 1,
      maxGradNorm: 1,
      beta1: 0.9,
      beta2: 0.999,
      eps: 1e-8,
      weightDecay: 0.01,
    })
    const batch = madeUpBatch(24, patched.model.spec.vocabulary)
    const found: number[] = []
    for (let step = 0; step < 3; ++step) found.push((await trainer.step(step, [batch], { default: 1e-3, embedding: 1e-3 })).loss)
    return { losses: found, evaluated: await trainer.evaluate([batch]), plan, moved: runtime.bytesOf('hostWeights') }
  } finally {
    runtime.dispose()
  }
}

describe('memory of the host', () => {
  it('with the embedding, which is the head too, in it: training and evaluation are the same to the bit', async () => {
    const [here, there] = [await losses({}), await losses({ hostWeights: ['embedding', 'head'] })]
    assert.ok(here.losses.at(-1)! < here.losses[0]! && here.moved === 0)
    assert.equal(there.moved, 32_000 * 288 * 2)
    assert.deepEqual([there.losses, there.evaluated], [here.losses, here.evaluated])
  })

  it('with paged moments in it: full training is the same to the bit', async () => {
    const training = { kind: 'full' } as const
    const here = await losses({ training })
    const there = await losses({ training, availableBytes: here.plan.totalBytes - 1 })
    assert.deepEqual([here.plan.moments, there.plan.moments], ['device', 'host'])
    assert.ok(here.losses.at(-1)! < here.losses[0]!)
    assert.deepEqual([there.losses, there.evaluated], [here.losses, here.evaluated])
  })
})
