import { strict as assert } from 'node:assert'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspectPath } from '../../engine/cli/inspect.ts'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { isQuantised } from '../../engine/graph/dtype.ts'
import { refreshCommands } from '../../engine/patch/shadow.ts'
import { Generator } from '../../engine/generate/generator.ts'
import { greedy } from '../../engine/generate/sampler.ts'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import { listCheckpoints } from '../../engine/run/checkpoints.ts'
import { planTraining } from '../../engine/train/trainingPlan.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { adapterBytes, assertClose, failure, losses, makeRecipe, starter, temporaryFolder, train } from './support.ts'

const magnitudes = async (run: string, module: string): Promise<Float32Array> =>
  readFloat32(
    requireTensor(
      await openTensorSource(join(run, 'adapter', 'adapter_model.safetensors')),
      `base_model.model.model.${module}.lora_magnitude_vector`,
    ),
  )

/** ‖W_o‖ of each row of a module of the starter. */
async function rowLengths(module: string): Promise<Float32Array> {
  const tensor = requireTensor(await openTensorSource(starter), `model.${module}.weight`)
  const [values, width] = [await readFloat32(tensor), tensor.shape[1]!]
  return Float32Array.from({ length: tensor.shape[0]! }, (_, row) =>
    Math.hypot(...values.subarray(row * width, (row + 1) * width)),
  )
}

describe('DoRA', () => {
  const folder = temporaryFolder()
  type Keys = Readonly<Record<string, unknown>>
  const recipe = (name: string, training: Keys = {}, lora: Keys = {}, save: Keys = {}) =>
    makeRecipe(join(folder, name), { training: { max_steps: 4, ...training }, lora: { use_dora: true, ...lora }, save })

  it('starts from the model itself, moves the lengths of rows, and is saved as PEFT does', async () => {
    const [plain, dora] = [
      await train(recipe('plain', {}, { use_dora: false })),
      await train(recipe('dora', { learning_rate: 1e-2 }, {}, { method: ['lora', 'merged_16bit'] })),
    ]
    assert.ok(Math.abs(losses(dora)[0]! - losses(plain)[0]!) < 2e-6, `${losses(dora)[0]}, ${losses(plain)[0]}`)
    const config = JSON.parse(readFileSync(join(dora, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.equal(config.use_dora, true)
    assert.equal((await inspectPath(join(dora, 'adapter'))).facts.DoRA, 'yes')
    const [now, before] = [await magnitudes(dora, 'layers.1.mlp.up_proj'), await rowLengths('layers.1.mlp.up_proj')]
    assertClose(now, before, 0.2, 'near to where it began')
    assert.ok(
      now.some((value, i) => Math.abs(value / before[i]! - 1) > 5e-3),
      'but not there any more',
    )
  })

  it('goes on from a checkpoint bit by bit, with every kind of moments', async () => {
    for (const optim of ['adamw_torch', 'adamw_8bit', 'adafactor']) {
      const whole = await train(recipe(`whole-${optim}`, { save_steps: 2, optim }))
      const resumed = await train(
        recipe(`resumed-${optim}`, { resume_from: listCheckpoints(join(whole, 'checkpoints'))[0]!.path, optim }),
      )
      assert.deepEqual(adapterBytes(resumed), adapterBytes(whole), optim)
    }
  })

  it('trains with dropout, NEFTune, rsLoRA and other starts', async () => {
    for (const lora of [
      { lora_dropout: 0.3, use_rslora: true },
      { init_lora_weights: 'pissa' },
      { init_lora_weights: false, bias: 'all' },
      { loraplus_lr_ratio: 8, target_modules: 'q_proj,down_proj' },
    ]) {
      const values = losses(
        await train(recipe(JSON.stringify(lora).replaceAll(/\W/g, ''), { max_steps: 6, neftune_noise_alpha: 1 }, lora)),
      )
      assert.ok(values.every(Number.isFinite) && values.at(-1)! < values[0]!, `${JSON.stringify(lora)}: ${values.join()}`)
    }
  })

  it('PiSSA: the saved adapter of twice the rank is the trained model, and starts with the lengths of the whole weights', async () => {
    const run = await train(
      recipe(
        'pissa',
        { max_steps: 2, learning_rate: 1e-6 },
        { init_lora_weights: 'pissa' },
        { method: ['lora', 'merged_16bit'] },
      ),
    )
    assertClose(
      await magnitudes(run, 'layers.0.self_attn.o_proj'),
      await rowLengths('layers.0.self_attn.o_proj'),
      1e-3,
      'lengths, but for the rounding of what the weights keep',
    )
    const again = losses(
      await train(recipe('pissa-again', { max_steps: 1 }, { lora_r: 8, lora_alpha: 16, init_adapter: join(run, 'adapter') })),
    )
    assert.ok(Math.abs(again[0]! - losses(run)[0]!) < 3e-3, `${again[0]}, ${losses(run)[0]}`)
  })

  it('trains on 4-bit weights, merges, and writes text with what was trained', async () => {
    const run = await train(
      recipe('nf4', { load_in_4bit: true, max_steps: 12, learning_rate: 5e-3 }, {}, { method: ['lora', 'merged_16bit'] }),
    )
    const values = losses(run)
    assert.ok(values.slice(6).reduce((a, b) => a + b) < values.slice(0, 6).reduce((a, b) => a + b), values.join())
    const { model, tokenizer } = await FastLanguageModel.forInference({
      modelName: starter,
      loadIn4bit: true,
      adapter: join(run, 'adapter'),
      device: { kind: 'cpu', threads: 1 },
    })
    try {
      const prompt = tokenizer.encode('Once upon a time', { addSpecialTokens: true })
      const [made] = await new Generator(model, model.trained, { batch: 1, maxLength: 64 }).generate([{ ids: prompt, seed: 0 }], {
        maxNewTokens: 20,
        sampling: greedy,
        stopIds: new Set(),
      })
      const ids = Int32Array.from([...prompt, ...made!])
      const largest = (logits: Float32Array, row: number) => {
        const { vocabulary } = model.spec
        const mine = logits.subarray(row * vocabulary, (row + 1) * vocabulary)
        return mine.indexOf(Math.max(...mine))
      }
      const [trained, base] = [await allLogits(model, model.trained, [ids]), await allLogits(model, model.base, [ids])]
      assert.deepEqual(
        [...made!],
        [...made!.keys()].map((at) => largest(trained, prompt.length - 1 + at)),
      )
      assert.ok(
        [...made!.keys()].some((at) => made![at] !== largest(base, prompt.length - 1 + at)),
        'the base would write something else',
      )
    } finally {
      model.runtime.dispose()
    }
  })

  it('refuses an adapter of the other kind', async () => {
    const run = await train(recipe('kind', { max_steps: 1 }))
    await assert.rejects(
      train(recipe('other', {}, { use_dora: false, init_adapter: join(run, 'adapter') })),
      failure('MODEL_INVALID', /use_dora: true, but this recipe trains with false/),
    )
  })

  it('trains on 8-bit weights', async () => {
    const values = losses(
      await train(recipe('int8', { load_in_8bit: true, max_steps: 8, learning_rate: 5e-3 }, { lora_dropout: 0.1 })),
    )
    assert.ok(values.every(Number.isFinite) && values.at(-1)! < values[0]!, values.join())
  })

  it('plans every byte that it takes', async () => {
    const model = await FastLanguageModel.fromPretrained({
      modelName: starter,
      device: { kind: 'cpu', threads: 1 },
      loadIn4bit: true,
    })
    try {
      model.getPeftModel({ r: 4, useDora: true })
      const plan = planTraining(model.patched, {
        checkpointing: 'auto',
        longestSample: 1,
        longestStep: 1,
        sequences: 1,
        evaluates: false,
        availableBytes: 2 ** 30,
        threads: 1,
      })
      const loaded = await model.load()
      assert.ok([...loaded.patched.arena.weights.values()].some(({ value }) => isQuantised(value.storage.dtype)))
      assert.ok(refreshCommands(loaded.patched.layout, loaded.patched.arena.weights, loaded.target).length > 0)
      model.trainer(plan, { maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0 })
      const part = (name: string) => plan.parts.find((each) => each.name === name)!.bytes
      assert.equal(loaded.runtime.bytesOf('dora'), part('row lengths'))
      assert.equal(loaded.runtime.bytesOf('activations'), part('activations'))
    } finally {
      model.dispose()
    }
  })
})
