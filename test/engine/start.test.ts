import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { assertClose, losses, makeRecipe, ownRuntimeFolder, starter, temporaryFolder, train } from './support.ts'

/** Mean and deviation. */
function moments(values: Float32Array): { mean: number; deviation: number; most: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  return {
    mean,
    deviation: Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length),
    most: values.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
  }
}

describe('how a run starts', () => {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const name = 'model.layers.1.mlp.up_proj'

  async function started(initLoraWeights: boolean | 'gaussian', randomState = 1): Promise<{ a: Float32Array; b: Float32Array }> {
    const model = (await FastLanguageModel.fromPretrained({ modelName: starter, threads: 1, randomState })).getPeftModel({
      r: 16,
      initLoraWeights,
    })
    try {
      const loaded = await model.load()
      return { a: loaded.readParameter(`${name}.lora_A.weight`), b: loaded.readParameter(`${name}.lora_B.weight`) }
    } finally {
      model.dispose()
    }
  }

  it('a new adapter: A uniform in ±1/√in, B zero; the seed decides', async () => {
    const { a, b } = await started(true)
    const { deviation, most } = moments(a)
    assert.ok(most <= 1 / 8 && Math.abs(deviation - 1 / 8 / Math.sqrt(3)) < 0.005, `${deviation} ${most}`)
    assert.ok(b.every((value) => value === 0))
    assert.notDeepEqual((await started(true, 2)).a, a)
  })

  it('init_lora_weights: gaussian has the deviation 1/r, B zero', async () => {
    const { a, b } = await started('gaussian')
    const { mean, deviation, most } = moments(a)
    assert.ok(Math.abs(mean) < 0.006 && Math.abs(deviation - 1 / 16) < 0.004 && most > 2.5 / 16, `${mean} ${deviation} ${most}`)
    assert.ok(b.every((value) => value === 0))
  })

  it('init_lora_weights: false starts from another model than the base; the adapter’s configuration says so', async () => {
    const { b } = await started(false)
    assert.ok(moments(b).most <= 1 / 4 && moments(b).deviation > 0.1)
    const training = { max_steps: 1 }
    const [base, gaussian, random] = [
      await train(makeRecipe(folder, { training })),
      await train(makeRecipe(folder, { training, lora: { init_lora_weights: 'gaussian' } })),
      await train(makeRecipe(folder, { training, lora: { init_lora_weights: false } })),
    ]
    assert.equal(losses(gaussian)[0], losses(base)[0])
    assert.notEqual(losses(random)[0], losses(base)[0])
    for (const [dir, value] of [
      [gaussian, 'gaussian'],
      [random, false],
    ] as const)
      assert.equal(
        (JSON.parse(readFileSync(join(dir, 'adapter', 'adapter_config.json'), 'utf8')) as { init_lora_weights: unknown })
          .init_lora_weights,
        value,
      )
  })

  it('model.dtype decides how frozen weights are kept', async () => {
    const bytes = async (dtype: string) => {
      const { model } = await prepareRun({
        ...makeRecipe(folder),
        model: { ...makeRecipe(folder).model, dtype: dtype as 'auto' },
      })
      return model.patched.arena.bytes
    }
    const [stored, single, half] = [await bytes('auto'), await bytes('float32'), await bytes('float16')]
    assert.equal(half, stored)
    assert.ok(single > 1.95 * stored)
    const model = await FastLanguageModel.fromPretrained({ modelName: starter, threads: 1, dtype: 'float32' })
    try {
      const loaded = await model.load()
      const { offset, rows, cols, dtype } = model.patched.arena.weights.get('embedding')!.value.storage
      assert.equal(dtype, 'f32')
      const expected = await readFloat32(requireTensor(await openTensorSource(starter), 'model.embed_tokens.weight'))
      assertClose(loaded.runtime.readFloats('weights', offset, rows * cols), expected, 0, 'embedding')
    } finally {
      model.dispose()
    }
  })
})
