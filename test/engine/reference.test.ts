import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { assertEachClose, gsm8kSteps, trainOnGsm8k } from './gsm8k.ts'
import { fixtures, losses, makeRecipe, metricsOf, ownRuntimeFolder, starter, temporaryFolder, train } from './support.ts'

describe('real text from its rows', function () {
  this.timeout(300_000)
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)

  it('stories15m on GSM8K: loss, gradient norm and evaluation of torch and PEFT', async () => {
    // All 50 steps take a minute: where the models are required everything is checked, else the first steps are.
    const all = (process.env.UNSLOTH_REQUIRE ?? '').split(',').includes('models')
    const run = await trainOnGsm8k(join(folder, 'gsm8k'), { device: 'cpu', count: all ? gsm8kSteps : 8 })
    if (run === undefined) return
    const { reference, steps, evaluations } = run
    assertEachClose(
      steps.map(({ loss }) => loss as number),
      await reference.floats('loss'),
      5e-4,
      'loss',
    )
    assertEachClose(
      steps.map(({ grad_norm }) => grad_norm as number),
      await reference.floats('grad_norm'),
      5e-3,
      'gradient norm',
    )
    assert.equal(steps[0]!.learning_rate, 0)
    if (all)
      assertEachClose(
        [evaluations.at(-1)!.eval_loss as number],
        await reference.floats('eval_loss_after'),
        5e-4,
        'evaluation loss',
      )
  })

  it('the starter on GSM8K: the losses recorded when this engine agreed with the reference on stories15m', async () => {
    const recorded = JSON.parse(readFileSync(join(fixtures, 'starterOnGsm8k.json'), 'utf8')) as {
      losses: number[]
      evaluations: number[]
    }
    const dir = await train(
      makeRecipe(join(folder, 'starter'), {
        model: starter,
        data: { local_dataset: join(fixtures, 'gsm8k.jsonl'), eval_split: 8, shuffle: false },
        training: {
          device: 'cpu',
          max_seq_length: 512,
          batch_size: 4,
          gradient_accumulation_steps: 2,
          max_steps: 20,
          learning_rate: 5e-3,
          lr_scheduler_type: 'cosine',
          warmup_steps: 3,
          eval_steps: 10,
        },
        lora: { lora_r: 8, lora_alpha: 16 },
      }),
    )
    assertEachClose(losses(dir), recorded.losses, 5e-4, 'loss')
    assert.equal(losses(dir).length, recorded.losses.length)
    assertEachClose(
      metricsOf(dir)
        .filter(({ type }) => type === 'eval')
        .map(({ eval_loss }) => eval_loss as number),
      recorded.evaluations,
      5e-4,
      'evaluation loss',
    )
    assert.ok(recorded.losses.at(-1)! < recorded.losses[0]! - 0.5, 'it learns')
  })
})
