import assert from 'node:assert/strict'
import { join } from 'node:path'
import { executeRun } from '../../engine/cli/runLauncher.ts'
import { withRun } from '../../engine/run/controlClient.ts'
import { physicalCores } from '../../engine/runtime/cores.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { createRun, largeFile, makeRecipe, metricsOf } from './support.ts'

export function assertEachClose(got: readonly number[], expected: ArrayLike<number>, tolerance: number, what: string): void {
  got.forEach((value, i) => {
    assert.ok(
      Math.abs(value / expected[i]! - 1) <= tolerance,
      `${what} of step ${i + 1}: ${value}, the reference has ${expected[i]}`,
    )
  })
}

/** What torch and PEFT measured while they trained stories15m on GSM8K, and what this engine does with the same settings. */
export interface Gsm8kRun {
  readonly reference: Golden
  /** Of each step that was taken, in order. */
  readonly steps: Record<string, unknown>[]
  readonly evaluations: Record<string, unknown>[]
}

export const gsm8kSteps = 50

export interface Gsm8kOptions {
  readonly device: string
  readonly compute?: string
  /** So many steps of the reference's schedule; default all. */
  readonly count?: number
}

/** Trains as the reference did; undefined where the model or the reference is not there. */
export async function trainOnGsm8k(
  folder: string,
  { count = gsm8kSteps, ...where }: Gsm8kOptions,
): Promise<Gsm8kRun | undefined> {
  const [model, golden] = [largeFile('models', 'stories15m'), largeFile('golden', 'stories15m-gsm8k')]
  if (model === undefined || golden === undefined) return undefined
  const recipe = makeRecipe(folder, {
    model,
    data: { local_dataset: join(golden, 'train.jsonl'), eval_dataset: join(golden, 'eval.jsonl'), shuffle: false },
    training: {
      max_seq_length: 256,
      batch_size: 4,
      gradient_accumulation_steps: 2,
      max_steps: gsm8kSteps,
      learning_rate: 2e-3,
      lr_scheduler_type: 'cosine',
      warmup_steps: 5,
      weight_decay: 0.01,
      max_grad_norm: 1,
      eval_steps: gsm8kSteps,
      threads: physicalCores(),
      ...where,
    },
    lora: { lora_r: 16, lora_alpha: 32, init_adapter: join(golden, 'adapter_init') },
  })
  const { dir } = createRun(recipe)
  const last = count < gsm8kSteps ? count : undefined
  await executeRun(dir, { onStep: ({ step }) => void (step === last && withRun(dir, (run) => run.stop({ save: false }))) })
  const of = (kind: string) => metricsOf(dir).filter(({ type }) => type === kind)
  const steps = of('step')
  assert.ok(steps.length >= count, `${steps.length} steps`)
  return { reference: await Golden.open(golden), steps, evaluations: of('eval') }
}
