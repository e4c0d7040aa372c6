import assert from 'node:assert/strict'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { cpuTarget } from '../../engine/graph/target.ts'
import { describeModel, patchModel, type Training } from '../../engine/runtime/patchedModel.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { packMicroSteps } from '../../engine/train/batches.ts'
import { restoreCheckpoint, writeCheckpoint } from '../../engine/train/checkpoint.ts'
import type { LossScaleOptions } from '../../engine/train/lossScale.ts'
import type { OptimizerKind } from '../../engine/train/optimizerState.ts'
import { learningRate } from '../../engine/train/schedule.ts'
import { Trainer, type LossBatch, type StepOutcome } from '../../engine/train/trainer.ts'
import { planTraining } from '../../engine/train/trainingPlan.ts'
import { gradients, type ScoredRow } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { assertClose, failure, fixtures, starter, temporaryFolder } from './support.ts'

const lora: Training = { kind: 'lora', r: 4, alpha: 8, dropout: 0, rslora: false, targets: 'all-linear', modulesToSave: [] }
const tokens = 24
const perStep = 2
/** Times this and a loss scale of at least 256, a weight is beyond fp32; the loss itself, a sum in fp64, is not. */
const overflowing = 2 ** 121

const madeUp = (step: number): number[][] =>
  Array.from({ length: perStep }, (_, row) =>
    Array.from({ length: tokens }, (_, i) => 3 + ((i * 7 + row * 31 + step * 13 + i * i) % 90)),
  )

/** Micro-steps of one sequence each; their weights add up to `weight`. */
function batchesOf(step: number, weight = 1, rows: readonly (readonly number[])[] = madeUp(step)): LossBatch[] {
  const samples = rows.map((row, at) => {
    const ids = Int32Array.from(row)
    return { ids, labels: ids, key: step * perStep + at }
  })
  const batches = packMicroSteps(samples, [{ tokens, sequences: 1 }])
  assert.equal(batches.length, perStep)
  return batches.map((batch) => ({ ...batch, weights: batch.weights.map((each) => Math.fround(each * weight)) }))
}

interface Setup {
  readonly folder?: string
  readonly training?: Training
  readonly kind?: OptimizerKind
  readonly scaling?: LossScaleOptions
  readonly maxGradNorm?: number
}

/** Runs `use` on a trainer in fp32; with loss scaling when options for it are given. */
async function withTrainer<T>(
  { folder = starter, training = lora, kind = 'adamw', scaling, maxGradNorm = 1 }: Setup,
  use: (trainer: Trainer) => Promise<T>,
): Promise<T> {
  const patched = patchModel(await describeModel(folder), training, cpuTarget())
  const plan = planTraining(patched, {
    checkpointing: 'none',
    longestSample: tokens,
    longestStep: tokens * perStep,
    sequences: perStep,
    evaluates: false,
    optimizer: kind,
    availableBytes: 1e9,
    threads: 1,
    lossScaling: scaling !== undefined,
  })
  const runtime = new Runtime({ kind: 'cpu', threads: 1 })
  try {
    const model = await LoadedModel.load(patched, runtime, { seed: 1 })
    return await use(
      new Trainer(model, plan, {
        kind,
        seed: 1,
        maxGradNorm,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weightDecay: 0.01,
        ...(scaling === undefined ? {} : { lossScale: scaling }),
      }),
    )
  } finally {
    runtime.dispose()
  }
}

const rates = { default: 2e-3 }
/** Everything that a step may change. */
const stateOf = (trainer: Trainer) => ({
  parameters: trainer.model.patched.layout.parameters.map(({ name }) => trainer.model.readParameter(name)),
  moments: trainer.readMoments(),
})
const figures = ({ loss, gradientNorm }: StepOutcome) => [loss, gradientNorm]

async function run(trainer: Trainer, weights: readonly number[], from = 0): Promise<StepOutcome[]> {
  const outcomes: StepOutcome[] = []
  for (const [at, weight] of weights.entries()) outcomes.push(await trainer.step(from + at, batchesOf(from + at, weight), rates))
  return outcomes
}

describe('loss scaling', function () {
  this.timeout(60_000)
  const folder = temporaryFolder()
  const mixtral = join(folder, 'mixtral')

  before(() => unpackCase(join(import.meta.dirname, `../fixtures/golden/tiny-mixtral${packedSuffix}`), mixtral))

  const setups: [string, Setup][] = [
    ['LoRA and AdamW', {}],
    ['full fine-tuning and AdamW of 8 bits', { kind: 'adamw8', training: { kind: 'full' } }],
    ['Lion', { kind: 'lion' }],
    ['SGD', { kind: 'sgd' }],
    ['Adafactor', { kind: 'adafactor' }],
    ['routers with a balance loss', { folder: mixtral, training: { kind: 'full' } }],
  ]
  for (const [name, setup] of setups)
    it(`by a power of two changes no bit: ${name}`, async () => {
      const train = (scaling?: LossScaleOptions) =>
        withTrainer({ ...setup, ...(scaling === undefined ? {} : { scaling }) }, async (trainer) => ({
          outcomes: await run(trainer, [1, 1, 1]),
          state: stateOf(trainer),
        }))
      const [plain, scaled] = [await train(), await train({ initial: 1024, growthInterval: 1 })]
      assert.deepEqual(scaled.outcomes.map(figures), plain.outcomes.map(figures))
      assert.deepEqual(scaled.state, plain.state)
      assert.deepEqual(
        scaled.outcomes.map(({ scaling }) => scaling),
        [1024, 2048, 4096].map((scale) => ({ scale, next: 2 * scale, skipped: false })),
      )
      assert.ok(plain.outcomes.every(({ scaling }) => scaling === undefined))
    })

  it('a gradient that overflows skips its step alone and halves the scale', async () => {
    await withTrainer({ scaling: {} }, async (trainer) => {
      await run(trainer, [1, 1])
      const before = stateOf(trainer)
      const [spoilt] = await run(trainer, [overflowing], 2)
      assert.deepEqual(spoilt!.scaling, { scale: 65_536, next: 32_768, skipped: true })
      assert.ok(Number.isFinite(spoilt!.loss) && !Number.isFinite(spoilt!.gradientNorm))
      assert.deepEqual(stateOf(trainer), before)
      const rest = await run(trainer, [1, 1], 3)
      assert.deepEqual(
        rest.map(({ updates, scaling }) => [updates, scaling]),
        [2, 3].map((updates) => [updates, { scale: 32_768, next: 32_768, skipped: false }]),
      )
      // Without scaling, and without that step: nobody can tell.
      await withTrainer({}, async (plain) => {
        await run(plain, [1, 1])
        for (const [at, { loss, gradientNorm }] of rest.entries())
          assert.deepEqual([loss, gradientNorm], figures(await plain.step(2 + at, batchesOf(3 + at), rates)))
        assert.deepEqual(stateOf(plain), stateOf(trainer))
      })
    })
  })

  it('a loss that is not finite is skipped too', async () => {
    await withTrainer({ scaling: {} }, async (trainer) => {
      const before = stateOf(trainer)
      const [outcome] = await run(trainer, [NaN])
      assert.deepEqual(outcome!.scaling, { scale: 65_536, next: 32_768, skipped: true })
      assert.deepEqual(stateOf(trainer), before)
    })
  })

  it('fails when the scale has come down below 1', async () => {
    await withTrainer({ scaling: { initial: 2 } }, async (trainer) => {
      await run(trainer, [Infinity])
      await assert.rejects(run(trainer, [Infinity], 1), failure('NON_FINITE', /of step 2/, /float16 end at 65504/))
    })
  })

  it('learning rates and the count of updates stand still with a skipped step, whatever is under way', async () => {
    const weights = [1, overflowing, overflowing, 1, 1, overflowing, 1, 1]
    const byUpdates = (updates: number) => ({
      default: learningRate(updates, { type: 'linear', totalSteps: 10, warmupSteps: 2 }) * 1e-2,
    })
    const oneByOne = await withTrainer({ scaling: {} }, async (trainer) => {
      const outcomes: StepOutcome[] = []
      for (const [step, weight] of weights.entries()) outcomes.push(await trainer.step(step, batchesOf(step, weight), byUpdates))
      return { outcomes, state: stateOf(trainer) }
    })
    assert.deepEqual(
      oneByOne.outcomes.map(({ updates }) => updates),
      [0, 1, 1, 1, 2, 3, 3, 4],
    )
    const atOnce = await withTrainer({ scaling: {} }, async (trainer) => {
      const started: Promise<StepOutcome>[] = []
      for (const [step, weight] of weights.entries())
        started.push((await trainer.start(step, batchesOf(step, weight), byUpdates)).outcome)
      return { outcomes: await Promise.all(started), state: stateOf(trainer) }
    })
    assert.deepEqual(atOnce, oneByOne)
    const plain = await withTrainer({}, async (trainer) => {
      let updates = 0
      for (const [step, weight] of weights.entries()) if (weight === 1) await trainer.step(updates++, batchesOf(step), byUpdates)
      return stateOf(trainer)
    })
    assert.deepEqual(plain, oneByOne.state)
  })

  it('gradients that are compared with a reference come without their scale, at one that they fit', async () => {
    await withTrainer({}, async ({ model }) => {
      for (const weight of [1e-3, 2 ** 110]) {
        const rows: ScoredRow[] = madeUp(0).map((ids) => ({ ids: Int32Array.from(ids), weight: () => weight }))
        const of = async (lossScaling: boolean) => {
          const loss = await gradients(model, rows, { lossScaling })
          return { loss, gradients: model.runtime.readFloats('grads', 0, model.patched.layout.elements) }
        }
        const plain = await of(false)
        assert.ok(plain.gradients.some((value) => value !== 0) && plain.gradients.every(Number.isFinite))
        assert.deepEqual(await of(true), plain)
      }
    })
  })

  it('a checkpoint keeps scale, good steps and skipped steps, bit for bit', async () => {
    const scaling = { growthInterval: 3 }
    const weights = [1, overflowing, 1, 1, 1, 1]
    const whole = await withTrainer({ scaling }, async (trainer) => ({
      outcomes: await run(trainer, weights),
      state: stateOf(trainer),
      scale: trainer.readLossScale(),
    }))
    assert.deepEqual(whole.scale, { scale: 65_536, goodSteps: 1, skipped: 1 })
    const checkpoint = join(folder, 'checkpoint')
    mkdirSync(checkpoint)
    await withTrainer({ scaling }, async (trainer) => {
      await run(trainer, weights.slice(0, 3))
      await writeCheckpoint(trainer, checkpoint)
    })
    const resumed = await withTrainer({ scaling }, async (trainer) => {
      await restoreCheckpoint(trainer, checkpoint)
      return { outcomes: await run(trainer, weights.slice(3), 3), state: stateOf(trainer), scale: trainer.readLossScale() }
    })
    assert.deepEqual(resumed, { ...whole, outcomes: whole.outcomes.slice(3) })
    // A run without loss scaling takes the same checkpoint.
    await withTrainer({}, (trainer) => restoreCheckpoint(trainer, checkpoint))
  })

  it('skips, scales and trains as torch.amp.GradScaler with AdamW, a clip and a schedule does', async () => {
    const golden = JSON.parse(readFileSync(join(fixtures, 'gradScaler.json'), 'utf8')) as {
      initial: number
      growthInterval: number
      rate: number
      warmup: number
      totalSteps: number
      maxNorm: number
      weights: number[]
      ids: number[][][]
      skipped: boolean[]
      scales: number[]
      rates: number[]
      losses: number[]
      norms: (number | null)[]
      adapter: Record<string, string>
    }
    const { initial, growthInterval, weights } = golden
    const training: Training = { kind: 'lora', r: 2, alpha: 4, dropout: 0, rslora: false, targets: ['q_proj'], modulesToSave: [] }
    await withTrainer({ training, scaling: { initial, growthInterval }, maxGradNorm: golden.maxNorm }, async (trainer) => {
      const { parameters } = trainer.model.patched.layout
      for (const { name, rows, cols } of parameters) {
        const at = 2 * Number(/layers\.(\d+)/.exec(name)![1]) + (name.includes('lora_B') ? 1 : 0)
        trainer.model.writeParameter(
          name,
          Float32Array.from({ length: rows * cols }, (_, i) => 0.05 * Math.sin(1 + 3 * i + 7 * at)),
        )
      }
      const byUpdates = (updates: number) => ({
        default:
          golden.rate * learningRate(updates, { type: 'linear', totalSteps: golden.totalSteps, warmupSteps: golden.warmup }),
      })
      const outcomes: StepOutcome[] = []
      for (const [step, weight] of weights.entries())
        outcomes.push(await trainer.step(step, batchesOf(step, weight, golden.ids[step]), byUpdates))
      assert.deepEqual(
        outcomes.map(({ scaling }) => scaling!.skipped),
        golden.skipped,
      )
      assert.deepEqual(
        outcomes.map(({ scaling }) => scaling!.next),
        golden.scales,
      )
      outcomes.forEach(({ loss, gradientNorm, updates, scaling }, step) => {
        assertClose([byUpdates(updates).default + 1], [golden.rates[step]! + 1], 1e-12, `learning rate of step ${step}`)
        assertClose([loss], [golden.losses[step]!], 1e-5, `loss of step ${step}`)
        if (!scaling!.skipped) assertClose([gradientNorm], [golden.norms[step]!], 1e-4, `gradient norm of step ${step}`)
      })
      for (const { name } of parameters) {
        const bytes = Buffer.from(golden.adapter[name]!, 'base64')
        assertClose(
          trainer.model.readParameter(name),
          new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)),
          1e-4,
          name,
        )
      }
    })
  })
})
