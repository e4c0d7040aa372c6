import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Recipe } from '#shared/recipe.ts'
import { executeRun } from '../../engine/cli/runLauncher.ts'
import { physicalCores } from '../../engine/runtime/cores.ts'
import { withRun } from '../../engine/run/controlClient.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { createRun, fixtures, largeFile, losses, makeRecipe, metricsOf, ownRuntimeFolder, starter, temporaryFolder, train } from './support.ts'

function assertEachClose(got: readonly number[], expected: ArrayLike<number>, tolerance: number, what: string): void {
  got.forEach((value, i) => assert.ok(Math.abs(value / expected[i]! - 1) <= tolerance, `${what} of step ${i + 1}: ${value}, the reference has ${expected[i]}`))
}

describe('real text from its rows', function () {
  this.timeout(300_000)
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)

  /** Trains so many steps of the recipe's schedule. */
  async function firstSteps(recipe: Recipe, steps: number): Promise<string> {
    if (steps >= recipe.training.max_steps) return train(recipe)
    const { dir } = createRun(recipe)
    await executeRun(dir, { onStep: ({ step }) => void (step === steps && withRun(dir, (run) => run.stop({ save: false }))) })
    return dir
  }

  it('stories15m on GSM8K: loss, gradient norm and evaluation of torch and PEFT', async () => {
    const [model, golden] = [largeFile('models', 'stories15m'), largeFile('golden', 'stories15m-gsm8k')]
    if (model === undefined || golden === undefined) return
    const reference = await Golden.open(golden)
    const recipe = makeRecipe(join(folder, 'gsm8k'), {
      model, data: { local_dataset: join(golden, 'train.jsonl'), eval_dataset: join(golden, 'eval.jsonl'), shuffle: false },
      training: {
        max_seq_length: 256, batch_size: 4, gradient_accumulation_steps: 2, max_steps: 50, learning_rate: 2e-3, lr_scheduler_type: 'cosine', warmup_steps: 5, weight_decay: 0.01,
        max_grad_norm: 1, eval_steps: 50, threads: physicalCores(),
      },
      lora: { lora_r: 16, lora_alpha: 32, init_adapter: join(golden, 'adapter_init') },
    })
    // All 50 steps take a minute: where the models are required everything is checked, else the first steps are.
    const all = (process.env.UNSLOTH_REQUIRE ?? '').split(',').includes('models')
    const dir = await firstSteps(recipe, all ? 50 : 8)
    const steps = metricsOf(dir).filter(({ type }) => type === 'step')
    assert.ok(steps.length >= (all ? 50 : 8), `${steps.length} steps`)
    assertEachClose(steps.map(({ loss }) => loss as number), await reference.floats('loss'), 5e-4, 'loss')
    assertEachClose(steps.map(({ grad_norm }) => grad_norm as number), await reference.floats('grad_norm'), 5e-3, 'gradient norm')
    assert.equal(steps[0]!.learning_rate, 0)
    if (!all) return
    const evaluations = metricsOf(dir).filter(({ type }) => type === 'eval')
    assertEachClose([evaluations.at(-1)!.eval_loss as number], await reference.floats('eval_loss_after'), 5e-4, 'evaluation loss')
  })

  it('the starter on GSM8K: the losses recorded when this engine agreed with the reference on stories15m', async () => {
    const recorded = JSON.parse(readFileSync(join(fixtures, 'starterOnGsm8k.json'), 'utf8')) as { losses: number[]; evaluations: number[] }
    const dir = await train(makeRecipe(join(folder, 'starter'), {
      model: starter, data: { local_dataset: join(fixtures, 'gsm8k.jsonl'), eval_split: 8, shuffle: false },
      training: { max_seq_length: 512, batch_size: 4, gradient_accumulation_steps: 2, max_steps: 20, learning_rate: 5e-3, lr_scheduler_type: 'cosine', warmup_steps: 3, eval_steps: 10 },
      lora: { lora_r: 8, lora_alpha: 16 },
    }))
    assertEachClose(losses(dir), recorded.losses, 5e-4, 'loss')
    assert.equal(losses(dir).length, recorded.losses.length)
    assertEachClose(metricsOf(dir).filter(({ type }) => type === 'eval').map(({ eval_loss }) => eval_loss as number), recorded.evaluations, 5e-4, 'evaluation loss')
    assert.ok(recorded.losses.at(-1)! < recorded.losses[0]! - 0.5, 'it learns')
  })
})
