import { strict as assert } from 'node:assert'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import { fables, assertClose, losses, makeRecipe, temporaryFolder, train, writeJsonl } from './support.ts'

/** A matrix of a run's adapter. */
async function matrixOf(run: string, name: string): Promise<{ shape: readonly number[]; values: Float32Array }> {
  const tensor = requireTensor(await openTensorSource(join(run, 'adapter', 'adapter_model.safetensors')), `base_model.model.model.${name}.weight`)
  return { shape: tensor.shape, values: await readFloat32(tensor) }
}

describe('options of adapters', () => {
  const folder = temporaryFolder()

  it('LoRA+: B learns at a multiple of the rate', async () => {
    const run = (name: string, lora: object) => train(makeRecipe(join(folder, name), { training: { optim: 'sgd', max_steps: 1, learning_rate: 0.01, max_grad_norm: 0, weight_decay: 0 }, lora: { ...lora } }))
    const [plain, faster] = [await run('plain', {}), await run('plus', { loraplus_lr_ratio: 16 })]
    const b = 'layers.1.mlp.up_proj.lora_B'
    const [slow, fast] = [await matrixOf(plain, b), await matrixOf(faster, b)]
    assert.ok(slow.values.some((value) => value !== 0))
    assertClose(fast.values, slow.values.map((value) => 16 * value), 1e-6, 'B') // B starts from zero
    assert.deepEqual((await matrixOf(faster, 'layers.1.mlp.up_proj.lora_A')).values, (await matrixOf(plain, 'layers.1.mlp.up_proj.lora_A')).values)
  })

  it('rank_pattern and alpha_pattern: other ranks where they match, and in the adapter’s config', async () => {
    const run = await train(makeRecipe(join(folder, 'patterns'), { training: { max_steps: 1 }, lora: { rank_pattern: { q_proj: 2, 'layers.1.mlp.down_proj': 7 }, alpha_pattern: 'down_proj=3.5' } }))
    assert.deepEqual((await matrixOf(run, 'layers.0.self_attn.q_proj.lora_A')).shape[0], 2)
    assert.deepEqual((await matrixOf(run, 'layers.1.mlp.down_proj.lora_A')).shape[0], 7)
    assert.deepEqual((await matrixOf(run, 'layers.0.mlp.down_proj.lora_A')).shape[0], 4)
    const config = JSON.parse(readFileSync(join(run, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.deepEqual(config.rank_pattern, { 'layers.1.mlp.down_proj': 7, q_proj: 2 })
    assert.deepEqual(config.alpha_pattern, { down_proj: 3.5 })
  })

  it('NEFTune: noise in training, none in evaluation', async () => {
    const run = (name: string, training: object) => train(makeRecipe(join(folder, name), {
      data: { eval_dataset: writeJsonl(join(folder, 'held-out.jsonl'), fables(30).slice(24)) }, training: { max_steps: 2, eval_steps: 1, learning_rate: 1e-9, ...training },
    }))
    const evaluated = (dir: string) => readFileSync(join(dir, 'metrics.jsonl'), 'utf8').split('\n').filter((line) => line.includes('"eval"')).map((line) => (JSON.parse(line) as { eval_loss: number }).eval_loss)
    const [quiet, noisy, again] = [await run('quiet', {}), await run('noisy', { neftune_noise_alpha: 5 }), await run('again', { neftune_noise_alpha: 5 })]
    assert.ok(evaluated(quiet).length > 0)
    assert.notEqual(losses(noisy)[0], losses(quiet)[0])
    assert.ok(Math.abs(losses(noisy)[0]! - losses(quiet)[0]!) < 0.5)
    assert.deepEqual(losses(again), losses(noisy))
    assertClose(evaluated(noisy), evaluated(quiet), 1e-6, 'evaluation')
  })
})
