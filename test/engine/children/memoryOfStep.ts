/** memoryOfStep SHAPE TOKENS LAYERS lora|full STEPS: optimizer steps in this process; prints the plan and the measured peak. */
import { readFileSync } from 'node:fs'
import { cpuTarget } from '../../../engine/graph/target.ts'
import { madeUpBatch } from '../../../engine/bench/batches.ts'
import { madeUpModel } from '../../../engine/bench/step.ts'
import { shapeModel } from '../../../engine/bench/shapes.ts'
import { patchModel } from '../../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../../engine/runtime/runtime.ts'
import { Trainer } from '../../../engine/train/trainer.ts'
import { planTraining } from '../../../engine/train/trainingPlan.ts'

const [shape, tokenText, layers, kind, steps] = process.argv.slice(2)
const tokens = Number(tokenText)
const statusOf = (key: string): number =>
  Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024

async function main(): Promise<void> {
  const threads = 2
  const training =
    kind === 'full'
      ? ({ kind } as const)
      : ({ kind: 'lora', r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] } as const)
  const patched = patchModel(shapeModel(shape!, 'BF16', Number(layers)), training, cpuTarget())
  const plan = planTraining(patched, {
    checkpointing: 'none',
    longestSample: tokens,
    longestStep: tokens,
    sequences: 1,
    evaluates: false,
    availableBytes: 1e12,
    threads,
  })
  const runtime = new Runtime({ kind: 'cpu', threads })
  const before = statusOf('VmRSS')
  const model = await madeUpModel(patched, runtime)
  const trainer = new Trainer(model, plan, { seed: 1, maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
  const batch = madeUpBatch(tokens, patched.model.spec.vocabulary)
  const losses: number[] = []
  for (let step = 0; step < Number(steps); ++step)
    losses.push((await trainer.step(step, [batch], { default: 1e-3, embedding: 1e-3 })).loss)
  console.log(JSON.stringify({ planned: plan.totalBytes, before, peak: statusOf('VmHWM'), parts: plan.parts, losses }))
}

void main()
