import { strict as assert } from 'node:assert'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { cpuTarget } from '../../engine/graph/target.ts'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import { loraTraining } from '../../engine/patch/peftOptions.ts'
import { symmetricEigen } from '../../engine/patch/symmetricEigen.ts'
import { listCheckpoints } from '../../engine/run/checkpoints.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { mergedTensor } from '../../engine/save/merge.ts'
import { writeAdapterFiles } from '../../engine/save/saveAdapter.ts'
import { restoreParameters } from '../../engine/train/checkpoint.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { gradients } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { adapterBytes, fables, assertClose, losses, makeRecipe, starter, temporaryFolder, train, writeJsonl } from './support.ts'

/** A matrix of a run's adapter. */
async function matrixOf(run: string, name: string): Promise<{ shape: readonly number[]; values: Float32Array }> {
  const tensor = requireTensor(
    await openTensorSource(join(run, 'adapter', 'adapter_model.safetensors')),
    `base_model.model.model.${name}.weight`,
  )
  return { shape: tensor.shape, values: await readFloat32(tensor) }
}

describe('options of adapters', () => {
  const folder = temporaryFolder()

  it('LoRA+: B learns at a multiple of the rate', async () => {
    const run = (name: string, lora: object) =>
      train(
        makeRecipe(join(folder, name), {
          training: { optim: 'sgd', max_steps: 1, learning_rate: 0.01, max_grad_norm: 0, weight_decay: 0 },
          lora: { ...lora },
        }),
      )
    const [plain, faster] = [await run('plain', {}), await run('plus', { loraplus_lr_ratio: 16 })]
    const b = 'layers.1.mlp.up_proj.lora_B'
    const [slow, fast] = [await matrixOf(plain, b), await matrixOf(faster, b)]
    assert.ok(slow.values.some((value) => value !== 0))
    assertClose(
      fast.values,
      slow.values.map((value) => 16 * value),
      1e-6,
      'B',
    ) // B starts from zero
    assert.deepEqual(
      (await matrixOf(faster, 'layers.1.mlp.up_proj.lora_A')).values,
      (await matrixOf(plain, 'layers.1.mlp.up_proj.lora_A')).values,
    )
  })

  it('rank_pattern and alpha_pattern: other ranks where they match, and in the adapter’s config', async () => {
    const run = await train(
      makeRecipe(join(folder, 'patterns'), {
        training: { max_steps: 1 },
        lora: { rank_pattern: { q_proj: 2, 'layers.1.mlp.down_proj': 7 }, alpha_pattern: 'down_proj=3.5' },
      }),
    )
    assert.deepEqual((await matrixOf(run, 'layers.0.self_attn.q_proj.lora_A')).shape[0], 2)
    assert.deepEqual((await matrixOf(run, 'layers.1.mlp.down_proj.lora_A')).shape[0], 7)
    assert.deepEqual((await matrixOf(run, 'layers.0.mlp.down_proj.lora_A')).shape[0], 4)
    const config = JSON.parse(readFileSync(join(run, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.deepEqual(config.rank_pattern, { 'layers.1.mlp.down_proj': 7, q_proj: 2 })
    assert.deepEqual(config.alpha_pattern, { down_proj: 3.5 })
  })

  it('names its layers for PEFT as the recipe does, or one by one where PEFT would read that otherwise', async () => {
    const config = async (name: string, lora: Readonly<Record<string, unknown>>) => {
      const run = await train(makeRecipe(join(folder, name), { training: { max_steps: 1 }, lora }))
      return JSON.parse(readFileSync(join(run, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    }
    const chosen = await config('layers', {
      target_modules: ['q_proj', 'o_proj'],
      layers_to_transform: [1],
      layers_pattern: 'layers',
      exclude_modules: '.*\\.o_proj',
    })
    assert.deepEqual(
      [chosen.target_modules, chosen.layers_to_transform, chosen.layers_pattern, chosen.exclude_modules],
      [['q_proj'], [1], ['layers'], '.*\\.o_proj'],
    )
    const pattern = await config('pattern', { target_modules: '.*\\.1\\..*(q|up)_proj' })
    assert.deepEqual([pattern.target_modules, pattern.layers_to_transform], ['.*\\.1\\..*(q|up)_proj', null])
    const both = await config('both', { target_modules: '.*(q|up)_proj', layers_to_transform: 0 })
    assert.deepEqual(
      [both.target_modules, both.layers_to_transform],
      [['model.layers.0.self_attn.q_proj', 'model.layers.0.mlp.up_proj'], null],
    )
    // Sorted, as PEFT writes them, `layers.1` would come first.
    const ranks = await config('ranks', { target_modules: 'q_proj', rank_pattern: { q_proj: 2, 'layers\\.1\\..*': 3 } })
    assert.ok(
      Object.entries(ranks.rank_pattern as object).every(
        ([name, rank]) => /^model\.layers\.\d+\.self_attn\.q_proj$/.test(name) && rank === 2,
      ),
    )
  })

  it('NEFTune: noise in training, none in evaluation', async () => {
    const run = (name: string, training: object) =>
      train(
        makeRecipe(join(folder, name), {
          data: { eval_dataset: writeJsonl(join(folder, 'held-out.jsonl'), fables(30).slice(24)) },
          training: { max_steps: 2, eval_steps: 1, learning_rate: 1e-9, ...training },
        }),
      )
    const evaluated = (dir: string) =>
      readFileSync(join(dir, 'metrics.jsonl'), 'utf8')
        .split('\n')
        .filter((line) => line.includes('"eval"'))
        .map((line) => (JSON.parse(line) as { eval_loss: number }).eval_loss)
    const [quiet, noisy, again] = [
      await run('quiet', {}),
      await run('noisy', { neftune_noise_alpha: 5 }),
      await run('again', { neftune_noise_alpha: 5 }),
    ]
    assert.ok(evaluated(quiet).length > 0)
    assert.notEqual(losses(noisy)[0], losses(quiet)[0])
    assert.ok(Math.abs(losses(noisy)[0]! - losses(quiet)[0]!) < 0.5)
    assert.deepEqual(losses(again), losses(noisy))
    assertClose(evaluated(noisy), evaluated(quiet), 1e-6, 'evaluation')
  })

  it('PiSSA: starts from the model itself, moves its principal part, and is saved for the original model', async () => {
    const start = (init: unknown) =>
      makeRecipe(join(folder, `pissa-${String(init)}`), {
        training: { max_steps: 3, learning_rate: 1e-3, save_steps: 2 },
        lora: { init_lora_weights: init },
      })
    const [plain, pissa] = [await train(start(true)), await train(start('pissa'))]
    assert.ok(Math.abs(losses(pissa)[0]! - losses(plain)[0]!) < 2e-3, 'weights and adapter together are the model')
    const a = await matrixOf(pissa, 'layers.0.mlp.up_proj.lora_A')
    assert.equal(a.shape[0], 8)
    const config = JSON.parse(readFileSync(join(pissa, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.deepEqual([config.r, config.lora_alpha, config.init_lora_weights], [8, 16, true])
    // The same model from the adapter on the original weights: a run that begins with it and hardly moves.
    const again = await train(
      makeRecipe(join(folder, 'pissa-again'), {
        training: { max_steps: 1 },
        lora: { lora_r: 8, lora_alpha: 16, init_adapter: join(pissa, 'adapter') },
      }),
    )
    const resumed = await train(
      makeRecipe(join(folder, 'pissa-true'), { training: { max_steps: 1 }, lora: { lora_r: 8, lora_alpha: 16 } }),
    )
    assert.ok(losses(again)[0]! < losses(resumed)[0]!, 'what was learned is in the saved adapter')
  })

  it('PiSSA: goes on from a checkpoint bit by bit', async () => {
    const recipe = (extra: object) =>
      makeRecipe(join(folder, 'pissa-resume'), {
        training: { max_steps: 4, save_steps: 2, ...extra },
        lora: { init_lora_weights: 'pissa' },
      })
    const whole = await train(recipe({}))
    const resumed = await train(recipe({ resume_from: listCheckpoints(join(whole, 'checkpoints'))[0]!.path }))
    assert.deepEqual(adapterBytes(resumed), adapterBytes(whole))
  })

  it('PiSSA and LoftQ: the principal part is that of the exact decomposition', async () => {
    const model = async (init: 'pissa' | 'loftq', quantised: boolean) => {
      const runtime = new Runtime({ kind: 'cpu', threads: 2 })
      const training = loraTraining({ r: 5, loraAlpha: 10, initLoraWeights: init })
      const patched = patchModel(
        await describeModel(starter),
        training,
        cpuTarget(),
        quantised ? { quantisation: { kind: 'load', type: 'nf4', nested: true } } : {},
      )
      return LoadedModel.load(patched, runtime, { seed: 1 })
    }
    for (const init of ['pissa', 'loftq'] as const) {
      const loaded = await model(init, init === 'loftq')
      const { module, width, inputs, rank, scale, weightId, column } = loaded.patched.modules.find((candidate) =>
        candidate.module.endsWith('layers.1.mlp.down_proj'),
      )!
      const source = await readFloat32(requireTensor(loaded.patched.model.source, `${module}.weight`))
      const [a, b] = [loaded.readParameter(`${module}.lora_A.weight`), loaded.readParameter(`${module}.lora_B.weight`)]
      const entry = loaded.patched.model.entries.find(({ id }) => id === weightId)!
      const kept = await mergedTensor(
        { ...loaded, trained: loaded.base, runtime: loaded.runtime, patched: loaded.patched } as unknown as LoadedModel,
        entry,
        entry.pieces.find(({ row }) => row === column)!,
        'f32',
      )
      const rest = new Float32Array(kept.slice().buffer)
      const target = init === 'pissa' ? source : source.map((value, i) => value - rest[i]!)
      const factor = init === 'pissa' ? scale : 1
      const product = Float32Array.from({ length: width * inputs }, (_, i) => {
        let sum = 0
        for (let k = 0; k < rank; ++k) sum += b[Math.floor(i / inputs) * rank + k]! * a[k * inputs + (i % inputs)]!
        return factor * sum
      })
      // The best approximation of rank r leaves Σ σ² of the rest, σ² the eigenvalues of T·Tᵀ.
      const gram = Float64Array.from({ length: width * width }, (_, i) => {
        let sum = 0
        for (let k = 0; k < inputs; ++k) sum += target[Math.floor(i / width) * inputs + k]! * target[(i % width) * inputs + k]!
        return sum
      })
      const best = symmetricEigen(gram, width)
        .values.slice(rank)
        .reduce((sum, value) => sum + value, 0)
      const left = target.reduce((sum, value, i) => sum + (value - product[i]!) ** 2, 0)
      assert.ok(left <= best * 1.02 && left >= best * 0.999, `${init}: ${left}, best ${best}`)
      if (init === 'pissa')
        assertClose(
          rest.map((value, i) => value + product[i]!),
          source,
          4e-3,
          'what is kept and what is trained',
        )
      loaded.runtime.dispose()
    }
    await assert.rejects(model('pissa', true), /pissa changes the weights/)
    await assert.rejects(model('loftq', false), /loftq starts from what quantisation takes/)
  })

  it('bias: gradients as in full fine-tuning, saved and loaded with the adapter', async () => {
    const model = join(folder, 'llama-bias')
    await unpackCase(join(projectRoot(), 'test', 'fixtures', 'golden', `llama-bias${packedSuffix}`), model)
    const golden = await Golden.open(model)
    const [ids, labels] = [await golden.tokenRows('input_ids'), await golden.tokenRows('labels')]
    const masks = await golden.tokenRows('attention_mask')
    const rows = ids.map((row, i) =>
      row.subarray(
        0,
        masks[i]!.reduce((sum, bit) => sum + bit, 0),
      ),
    )
    const scored = (row: number, position: number) => labels[row]![position] !== -100
    const count = rows.reduce(
      (sum, row, i) => sum + [...row.keys()].filter((position) => position > 0 && scored(i, position)).length,
      0,
    )
    const load = async (bias: 'all' | 'lora_only', targetModules: readonly string[]) => {
      const patched = patchModel(await describeModel(model), loraTraining({ r: 2, bias, targetModules }), cpuTarget())
      return LoadedModel.load(patched, new Runtime({ kind: 'cpu', threads: 2 }), { seed: 1 })
    }
    const loaded = await load('lora_only', ['q_proj', 'k_proj', 'v_proj'])
    const biases = loaded.patched.layout.parameters.filter(({ name }) => name.endsWith('.bias')).map(({ name }) => name)
    assert.ok(biases.length > 0 && biases.every((name) => /[qkv]_proj\.bias$/.test(name)), biases.join())
    // B is zero, so that the adapter changes nothing yet.
    await gradients(
      loaded,
      rows.map((row, i) => ({
        ids: row,
        width: ids[i]!.length,
        weight: (position: number) => (scored(i, position) ? 1 / count : undefined),
      })),
    )
    let compared = 0
    for (const name of biases) {
      if (!golden.has(`full_grad.${name}`)) continue
      assertClose(loaded.readGradient(name), await golden.floats(`full_grad.${name}`), 1e-4, name)
      ++compared
    }
    assert.ok(compared > 0)
    loaded.writeParameter(
      biases[0]!,
      loaded.readParameter(biases[0]!).map((value) => value + 1),
    )
    const out = join(folder, 'bias-adapter')
    mkdirSync(out)
    await writeAdapterFiles(loaded, out, undefined, true)
    const keys = [...(await openTensorSource(join(out, 'adapter_model.safetensors'))).tensors.keys()]
    assert.ok(keys.includes(`base_model.model.${biases[0]!.replace(/bias$/, 'base_layer.bias')}`), keys.join())
    const again = await load('lora_only', ['q_proj', 'k_proj', 'v_proj'])
    await restoreParameters(again, out)
    assert.deepEqual(again.readParameter(biases[0]!), loaded.readParameter(biases[0]!))
    await assert.rejects(load('lora_only', ['q_proj']), /lora_only is not possible for layers.0.qkv.bias/)
    const all = await load('all', ['q_proj'])
    assert.ok(all.patched.layout.parameters.some(({ name }) => name.endsWith('down_proj.bias')))
    for (const one of [loaded, again, all]) one.runtime.dispose()
  })
})
