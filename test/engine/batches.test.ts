import assert from 'node:assert/strict'
import { join } from 'node:path'
import { buildDataset } from '../../engine/data/dataset.ts'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { packMicroSteps, type MicroBatch, type StepSample } from '../../engine/train/batches.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { planTraining } from '../../engine/train/trainingPlan.ts'
import {
  adapterBytes,
  assertClose,
  fables,
  losses,
  makeRecipe,
  ownRuntimeFolder,
  relativeError,
  starter,
  temporaryFolder,
  train,
  writeJsonl,
} from './support.ts'

const steps = 5
const perStep = 6

interface Outcome {
  readonly losses: readonly number[]
  readonly norms: readonly number[]
  readonly adapter: ReadonlyMap<string, Float32Array>
  readonly microSteps: number
}

/** Trains a LoRA on the samples, `perStep` at a time, each step split into micro-steps by `split`. */
async function trainSplit(
  samples: readonly StepSample[],
  dropout: number,
  split: (step: readonly StepSample[]) => MicroBatch[],
  seed = 7,
): Promise<Outcome> {
  const model = await FastLanguageModel.fromPretrained({ modelName: starter, threads: 1, randomState: seed })
  try {
    model.getPeftModel({ r: 4, loraAlpha: 8, loraDropout: dropout })
    const longest = Math.max(...samples.map(({ ids }) => ids.length))
    const plan = planTraining(model.patched, {
      checkpointing: 'none',
      longestSample: longest,
      longestStep: longest * perStep,
      sequences: perStep,
      evaluates: false,
      availableBytes: 1e9,
      threads: 1,
    })
    await model.load()
    const trainer = model.trainer(plan, { maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
    const result = { losses: [] as number[], norms: [] as number[], adapter: new Map<string, Float32Array>(), microSteps: 0 }
    for (let step = 0; step < steps; ++step) {
      const batches = split(samples.slice(step * perStep, (step + 1) * perStep))
      result.microSteps += batches.length
      const { loss, gradientNorm } = await trainer.step(step, batches, { default: 1e-3, embedding: 1e-3 })
      result.losses.push(loss)
      result.norms.push(gradientNorm)
    }
    for (const { name } of model.patched.layout.parameters) result.adapter.set(name, trainer.model.readParameter(name))
    return result
  } finally {
    model.dispose()
  }
}

const allValues = ({ adapter }: Outcome): number[] => [...adapter.values()].flatMap((values) => [...values])

/**
 * The adapter is compared as one vector: AdamW divides a gradient by its own size, so one element whose gradient happens to be
 * nearly 0 shows rounding a thousand times larger than it is.
 */
function assertSame(a: Outcome, b: Outcome, what: string): void {
  assertClose(a.losses, b.losses, 1e-5, `${what}, losses`)
  assertClose(a.norms, b.norms, 1e-5, `${what}, gradient norms`)
  assertClose(allValues(a), allValues(b), 1e-5, `${what}, adapter`)
}

const packed =
  (tokens: number, sequences = Infinity) =>
  (step: readonly StepSample[]) =>
    packMicroSteps(step, [{ tokens, sequences }])

/** As frameworks with padding compute it: rows of one length, filled with tokens that are not scored. */
const padded = (step: readonly StepSample[]): MicroBatch[] => {
  const width = Math.max(...step.map(({ ids }) => ids.length))
  const fill = (values: Int32Array, value: number) => Int32Array.from({ length: width }, (_, i) => values[i] ?? value)
  return packMicroSteps(
    step.map(({ ids, labels, key }) => ({ ids: fill(ids, 2), labels: fill(labels, -100), key })),
    [{ tokens: width, sequences: 1 }],
  )
}

describe('batches', () => {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  let samples: StepSample[]

  before(async () => {
    const model = await FastLanguageModel.fromPretrained({ modelName: starter })
    // Lengths of all sizes, in an order that packing changes.
    const rows = fables(steps * perStep, 400).map(({ text }, i) => ({ text: text.slice(0, 40 + ((i * 131) % 300)) }))
    const data = await buildDataset(
      { files: [writeJsonl(join(folder, 'mixed.jsonl'), rows)], maxSeqLength: 512 },
      model.tokenizer,
    )
    samples = data.samples.map(({ ids, labels }, key) => ({ ids, labels, key }))
    assert.equal(samples.length, steps * perStep)
  })

  for (const dropout of [0, 0.1]) {
    describe(`with lora_dropout ${dropout}`, () => {
      let whole: Outcome
      before(async () => {
        whole = await trainSplit(samples, dropout, packed(4096))
        assert.equal(whole.microSteps, steps)
      })

      it('one sample at a time equals all packed', async () => {
        const single = await trainSplit(samples, dropout, packed(4096, 1))
        assert.equal(single.microSteps, steps * perStep)
        assertSame(single, whole, 'single')
      })

      it('padded rows equal packed ones', async () => assertSame(await trainSplit(samples, dropout, padded), whole, 'padded'))

      it('any capacity of micro-steps gives the same', async () => {
        const longest = Math.max(...samples.map(({ ids }) => ids.length))
        for (const tokens of [longest, longest + 37, 2 * longest]) {
          const split = await trainSplit(samples, dropout, packed(tokens))
          assert.ok(split.microSteps > steps && split.microSteps < steps * perStep, `${split.microSteps} micro-steps`)
          assertSame(split, whole, `${tokens} tokens`)
        }
      })

      it('what is compared would show other masks, or other samples', async () => {
        const other = await trainSplit(
          samples.map((sample) => ({ ...sample, key: sample.key + 1000 })),
          dropout,
          packed(4096),
        )
        const error = relativeError(other.losses, whole.losses)
        if (dropout > 0) assert.ok(error > 1e-4, `the loss does not depend on dropout masks: ${error}`)
        else assert.deepEqual(other.losses, whole.losses)
        const swapped = await trainSplit([...samples.slice(perStep), ...samples.slice(0, perStep)], dropout, packed(4096))
        assert.ok(relativeError(swapped.losses, whole.losses) > 1e-3)
      })
    })
  }

  it('8×1, 1×8 and 2×4 are one and the same, bit for bit', async () => {
    const runs = []
    for (const [batch_size, gradient_accumulation_steps] of [
      [8, 1],
      [1, 8],
      [2, 4],
    ])
      runs.push(
        await train(makeRecipe(folder, { training: { batch_size, gradient_accumulation_steps }, lora: { lora_dropout: 0.1 } })),
      )
    for (const dir of runs.slice(1)) {
      assert.deepEqual(losses(dir), losses(runs[0]!))
      assert.ok(adapterBytes(dir).equals(adapterBytes(runs[0]!)))
    }
  })

  it('packing: true trains on the same tokens', async () => {
    const training = { batch_size: 64, max_steps: 3, max_seq_length: 256 }
    const apart = makeRecipe(folder, { training, lora: { lora_dropout: 0.1 } })
    const joined = makeRecipe(folder, { training: { ...training, packing: true }, lora: { lora_dropout: 0.1 } })
    const [a, b] = [await prepareRun(apart), await prepareRun(joined)]
    const tokens = (batches: readonly { ids: Int32Array; labelIndex: Int32Array; tokenKeys?: Int32Array }[]) => ({
      ids: batches
        .flatMap(({ ids, tokenKeys }) => [...ids].map((id, i) => `${tokenKeys![2 * i]}.${tokenKeys![2 * i + 1]}.${id}`))
        .sort(),
      labelled: batches.reduce((sum, { labelIndex }) => sum + labelIndex.length, 0),
    })
    assert.deepEqual(tokens(b.batches(0)), tokens(a.batches(0)))
    assert.equal(b.tokensOf(1), a.tokensOf(1))
    const [separate, together] = [await train(apart), await train(joined)]
    assertClose(losses(together), losses(separate), 1e-5, 'losses')
  })

  it('packing: true counts rows of max_seq_length in a batch', async () => {
    const prepared = await prepareRun(
      makeRecipe(folder, { training: { packing: true, batch_size: 1, num_epochs: 1, max_steps: 0 } }),
    )
    const counts = Array.from({ length: prepared.totalSteps }, (_, step) =>
      prepared.batches(step).reduce((sum, { ids }) => sum + ids.length, 0),
    )
    assert.equal(
      counts.reduce((sum, count) => sum + count, 0),
      prepared.samples.reduce((sum, { ids }) => sum + ids.length, 0),
    )
    assert.ok(
      prepared.totalSteps < 0.6 * prepared.samples.length,
      `${prepared.totalSteps} rows of ${prepared.samples.length} samples`,
    )
    assert.ok(counts.every((count) => count <= 256))
  })
})
