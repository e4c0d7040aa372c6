import { strict as assert } from 'node:assert'
import { UnslothError } from '#shared/errors.ts'
import { shapeModel } from '../../engine/bench/shapes.ts'
import { cpuTarget, cudaTarget, type Target } from '../../engine/graph/target.ts'
import { patchModel } from '../../engine/runtime/patchedModel.ts'
import { planTraining, type Checkpointing, type TrainingPlanOptions } from '../../engine/train/trainingPlan.ts'

const card = 80e9

/** A step on one sequence with adapters of rank 32 on an 8B model in 4 bits. */
function plan(
  tokens: number,
  checkpointing: Checkpointing,
  target: Target = cudaTarget(),
  more: Partial<TrainingPlanOptions> = {},
) {
  const patched = patchModel(
    shapeModel('llama-3.1-8b', 'BF16'),
    { kind: 'lora', r: 32, alpha: 32, dropout: 0, rslora: false, targets: 'all-linear', modulesToSave: [] },
    target,
    { quantisation: { kind: 'load', type: 'nf4', nested: true } },
  )
  return planTraining(patched, {
    checkpointing,
    optimizer: 'adamw8',
    longestSample: tokens,
    longestStep: tokens,
    sequences: 1,
    evaluates: false,
    availableBytes: card,
    threads: 1,
    ...more,
  })
}

describe('long contexts on a card of 80 GB', () => {
  it('fit by recomputing as little as they can, then by offloading as little as they can', () => {
    const [short, long, longer] = [32_768, 65_536, 343_000].map((tokens) => plan(tokens, 'auto'))
    assert.match(short!.summary, /^the MLP half of \d+ of 32 layers recomputed, micro-steps of up to 32768 tokens, 7\d/)
    assert.match(long!.summary, /^\d of 32 layers but for attention recomputed, and the MLP half of \d\d more, micro-steps/)
    assert.match(
      longer!.summary,
      /^32 of 32 layers but for attention recomputed, micro-steps .* 12\d GB on the host \(offloaded activations\)$/,
    )
    assert.ok([short!, long!, longer!].every(({ totalBytes }) => totalBytes <= card && totalBytes > 0.95 * card))
    assert.deepEqual(
      [short!, long!].map(({ hostBytes }) => hostBytes),
      [0, 0],
    )
    assert.equal(longer!.parts.find(({ place }) => place === 'host')!.bytes, longer!.hostBytes)
  })

  it('reach 600,000 tokens when all layer inputs wait on the host', () => {
    const { totalBytes, hostBytes, training } = plan(600_000, 'offload')
    assert.ok(totalBytes < card, `${totalBytes} bytes`)
    // All but the last two layers' inputs, 4096 numbers of 2 bytes a token.
    assert.equal(hostBytes, 30 * training.capacity.tokens * 8192)
    assert.ok(plan(600_000, 'full', cudaTarget(), { availableBytes: Infinity }).totalBytes > 2 * card)
  })

  it('recompute attention too where the host has no room for it', () => {
    assert.match(
      plan(343_000, 'auto', cudaTarget(), { availableHostBytes: 90e9 }).summary,
      /^32 of 32 layers recomputed, micro-steps .* 4[\d.]+ GB on the host \(offloaded activations\)$/,
    )
  })

  it('are refused where the host has no room', () => {
    assert.throws(
      () => plan(600_000, 'offload', cudaTarget(), { availableHostBytes: 64e9 }),
      (error) =>
        UnslothError.is(error, 'MEMORY') &&
        error.message.includes('keeps 137 GB in the memory of the host, but only 59.6 GB are free there') &&
        (error.hint ?? '').includes('gradient_checkpointing: full'),
    )
    assert.throws(
      () => plan(343_000, 'auto', cudaTarget(), { availableHostBytes: 1e9 }),
      (error) => UnslothError.is(error, 'MEMORY'),
    )
  })

  it('are not offloaded by a processor, whose memory is the host’s', () => {
    const bytes = (checkpointing: Checkpointing) => plan(8192, checkpointing, cpuTarget(), { availableBytes: Infinity })
    assert.deepEqual([bytes('offload').totalBytes, bytes('offload').hostBytes], [bytes('full').totalBytes, 0])
  })
})
