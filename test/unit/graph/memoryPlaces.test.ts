import assert from 'node:assert/strict'
import { UnslothError } from '#shared/errors.ts'
import { shapeModel } from '../../../engine/bench/shapes.ts'
import { cpuTarget, cudaTarget } from '../../../engine/graph/target.ts'
import { patchModel, type PatchOptions, type Training } from '../../../engine/runtime/patchedModel.ts'
import { planTraining, type TrainingPlan, type TrainingPlanOptions } from '../../../engine/train/trainingPlan.ts'

const lora: Training = { kind: 'lora', r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }
const options: TrainingPlanOptions = {
  checkpointing: 'auto',
  longestSample: 512,
  longestStep: 1024,
  sequences: 2,
  evaluates: false,
  availableBytes: 2 ** 40,
  threads: 1,
}

function plan(
  shape: string,
  {
    training = lora,
    target = cudaTarget(),
    patch = {},
    ...more
  }: Partial<TrainingPlanOptions> & { training?: Training; target?: ReturnType<typeof cudaTarget>; patch?: PatchOptions },
): TrainingPlan {
  return planTraining(patchModel(shapeModel(shape, 'BF16', 4), training, target, patch), { ...options, ...more })
}

const part = ({ parts }: TrainingPlan, name: string): number => parts.find((each) => each.name === name)?.bytes ?? 0
const hostParts = ({ parts }: TrainingPlan) =>
  parts.filter(({ place }) => place === 'host').map(({ name, bytes }) => ({ name, bytes }))
const onHost = (planned: TrainingPlan) => hostParts(planned).map(({ name }) => name)
const matrix = (rows: number, cols: number): number => rows * cols * 2

describe('memory by its place', () => {
  it('keeps the embedding on the host: its bytes move, and commands read it there', () => {
    const [here, there] = [plan('llama-3.1-8b', {}), plan('llama-3.1-8b', { patch: { hostWeights: ['embedding'] } })]
    const bytes = matrix(128256, 4096)
    assert.deepEqual([hostParts(there), there.hostBytes], [[{ name: 'embedding', bytes }], bytes])
    assert.deepEqual(
      [part(here, 'frozen weights') - part(there, 'frozen weights'), here.totalBytes - there.totalBytes],
      [bytes, bytes],
    )
    const embed = there.training.plan.commands.find(({ name }) => name === 'embed')!
    assert.equal(embed.tensors[2]!.storage.arena, 'hostWeights')
    assert.match(there.summary, / of 1\.0 TB, 1002 MB on the host \(embedding\)$/)
    assert.deepEqual(onHost(here), [])
  })

  it('copies a head that lies on the host for as long as the loss reads it', () => {
    const there = plan('llama-3.1-8b', { patch: { hostWeights: ['head'] }, evaluates: true })
    for (const { plan: steps } of [there.training, there.scoring!]) {
      const at = steps.commands.findIndex(({ name }) => name === 'headLoss')
      const [fetch, wait, loss] = steps.commands.slice(at - 2)
      assert.deepEqual([fetch!.name, fetch!.tensors[1]!.storage.arena, wait!.name], ['prefetch', 'hostWeights', 'awaitCopy'])
      assert.equal(loss!.tensors[6]!.storage, fetch!.tensors[0]!.storage)
      assert.equal(loss!.tensors[6]!.storage.arena, 'activations')
    }
    assert.deepEqual(hostParts(there), [{ name: 'head', bytes: matrix(128256, 4096) }])
  })

  it('moves a tied embedding as a whole, and says when the head alone cannot move', () => {
    const tied = plan('llama-3.2-1b', { patch: { hostWeights: ['embedding'] } })
    assert.deepEqual(hostParts(tied), [{ name: 'embedding', bytes: matrix(128256, 2048) }])
    assert.ok(
      tied.training.plan.commands.some(({ name, tensors }) => name === 'prefetch' && tensors[1]!.storage.arena === 'hostWeights'),
    )
    const { arena } = patchModel(shapeModel('llama-3.2-1b', 'BF16', 1), lora, cudaTarget(), { hostWeights: ['head'] })
    assert.match(arena.notes.join(), /offload_lm_head has no effect/)
  })

  it("changes nothing on the processor, whose memory is the host's", () => {
    const [plain, asked] = [
      plan('llama-3.2-1b', { target: cpuTarget() }),
      plan('llama-3.2-1b', { target: cpuTarget(), patch: { hostWeights: ['embedding'] }, paged: true }),
    ]
    assert.deepEqual([asked.parts, hostParts(asked), asked.summary], [plain.parts, [], plain.summary])
  })

  it('moves paged moments to the host when the plan does not fit otherwise', () => {
    const full: Training = { kind: 'full' }
    const roomy = plan('llama-3.2-1b', { training: full, paged: true })
    assert.deepEqual([roomy.moments, roomy.hostBytes], ['device', 0])
    const least = plan('llama-3.2-1b', { training: full, checkpointing: 'full' }).totalBytes
    const availableBytes = least - 2 ** 30
    assert.throws(
      () => plan('llama-3.2-1b', { training: full, availableBytes }),
      (error) => UnslothError.is(error, 'MEMORY'),
    )
    const paged = plan('llama-3.2-1b', { training: full, paged: true, availableBytes })
    assert.equal(paged.moments, 'host')
    assert.deepEqual(onHost(paged), ['optimizer'])
    assert.ok(paged.totalBytes <= availableBytes)
    assert.equal(paged.hostBytes, part(roomy, 'optimizer'))
    assert.match(paged.summary, / on the host \(optimizer\)$/)
  })

  it('refuses what the host has no room for, with the part and the key', () => {
    const full: Training = { kind: 'full' }
    const availableBytes = plan('llama-3.2-1b', { training: full, checkpointing: 'full' }).totalBytes - 2 ** 30
    assert.throws(
      () => plan('llama-3.2-1b', { training: full, paged: true, availableBytes, availableHostBytes: 2 ** 30 }),
      (error) =>
        UnslothError.is(error, 'MEMORY') &&
        /in the memory of the host, but only 1\.0 GB .*largest part is optimizer/.test(error.message) &&
        error.hint!.includes('training.optim: adamw_8bit'),
    )
    assert.throws(
      () => plan('llama-3.1-8b', { patch: { hostWeights: ['embedding'] }, availableHostBytes: 2 ** 29 }),
      (error) =>
        UnslothError.is(error, 'MEMORY') &&
        error.message.includes('largest part is embedding') &&
        error.hint!.includes('offload_embedding'),
    )
  })

  it('keeps below max_memory, says so, and names it when that is too little', () => {
    const most = plan('llama-3.2-1b', {}).totalBytes
    const capped = plan('llama-3.2-1b', { maxBytes: most - 2 ** 20 })
    assert.ok(capped.totalBytes <= most - 2 ** 20)
    assert.match(capped.summary, / \(max_memory\)$/)
    assert.doesNotMatch(plan('llama-3.2-1b', { availableBytes: most, maxBytes: most + 1 }).summary, /max_memory/)
    assert.throws(
      () => plan('llama-3.2-1b', { maxBytes: 2 ** 27 }),
      (error) =>
        UnslothError.is(error, 'MEMORY') &&
        error.message.includes('training.max_memory allows only 128 MB') &&
        error.hint!.startsWith('Raise training.max_memory.'),
    )
  })

  it('counts what the GPU takes unasked', () => {
    const gpuOverhead = { contextBytes: 5e8, graphNodeBytes: 1000 }
    const [without, counted] = [plan('llama-3.2-1b', {}), plan('llama-3.2-1b', { gpuOverhead })]
    assert.equal(part(counted, 'GPU context and kernels'), 5e8)
    assert.ok(part(counted, 'CUDA graphs') > 1000 * counted.training.plan.commands.length)
    assert.equal(counted.totalBytes - without.totalBytes, 5e8 + part(counted, 'CUDA graphs'))
  })
})
