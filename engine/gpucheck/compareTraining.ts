import { join } from 'node:path'
import { madeUpBatch } from '../bench/batches.ts'
import { FastLanguageModel } from '../fastLanguageModel.ts'
import type { Compute } from '../graph/target.ts'
import { projectRoot } from '../projectRoot.ts'
import type { DeviceChoice } from '../runtime/runtime.ts'
import { planTraining } from '../train/trainingPlan.ts'

export interface TrainingComparison {
  readonly compute: Compute
  readonly steps: number
  /** Largest |GPU − processor| / processor of any step's loss. */
  readonly error: number
  readonly allowed: number
  readonly passed: boolean
}

const steps = 20
const allowed: Readonly<Record<Compute, number>> = { float32: 5e-3, tfloat32: 1e-2, bfloat16: 2e-2, float16: 1e-2 }

/** Losses of LoRA training of the bundled model on made-up text that it has to learn by heart. */
async function losses(device: DeviceChoice, compute: Compute): Promise<number[]> {
  const model = await FastLanguageModel.fromPretrained({
    modelName: join(projectRoot(), 'engine', 'starter', 'model'),
    device,
    compute,
  })
  try {
    model.getPeftModel({ r: 8, loraAlpha: 16 })
    const [tokens, sequences] = [100, 3]
    const plan = planTraining(model.patched, {
      checkpointing: 'auto',
      longestSample: tokens,
      longestStep: tokens * sequences,
      sequences,
      evaluates: false,
      availableBytes: 2 ** 30,
      threads: device.kind === 'cpu' ? device.threads : 1,
    })
    await model.load()
    const trainer = model.trainer(plan, { maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
    const batch = madeUpBatch(tokens, model.patched.model.spec.vocabulary, sequences)
    const result: number[] = []
    for (let step = 0; step < steps; ++step)
      result.push((await trainer.step(step, [batch], { default: 2e-3, embedding: 2e-3 })).loss)
    return result
  } finally {
    model.dispose()
  }
}

/** The same training on the processor in fp32 and on a GPU. */
export async function compareTraining(cpu: DeviceChoice, gpu: DeviceChoice, compute: Compute): Promise<TrainingComparison> {
  const expected = await losses(cpu, 'float32')
  const got = await losses(gpu, compute)
  const error = expected.reduce((worst, loss, step) => Math.max(worst, Math.abs(got[step]! - loss) / loss), 0)
  return { compute, steps, error, allowed: allowed[compute], passed: error <= allowed[compute] }
}
