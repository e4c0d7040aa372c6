import assert from 'node:assert/strict'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import type { PeftOptions } from '../../engine/patch/peftOptions.ts'
import { greedy } from '../../engine/generate/sampler.ts'
import { nodeFileSystem, type FileSystem } from '../../engine/io/fileSystem.ts'
import { openPeftAdapter } from '../../engine/io/peftAdapter.ts'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import type { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { saveAdapter } from '../../engine/save/saveAdapter.ts'
import { saveMerged } from '../../engine/save/saveMerged.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { failingFileSystem } from '../unit/io/support.ts'
import { assertClose, failure, makeRecipe, ownRuntimeFolder, relativeError, starter, temporaryFolder, train } from './support.ts'

const probes = [Int32Array.of(1, 403, 407, 261, 378), Int32Array.from({ length: 40 }, (_, i) => (i * 53) % 512)]

/** Repeatable values around 0, so that an adapter does something. */
function randomise(model: LoadedModel, size = 0.05): void {
  for (const { name, rows, cols } of model.patched.layout.parameters)
    if (name.includes('lora_'))
      model.writeParameter(
        name,
        Float32Array.from({ length: rows * cols }, (_, i) => size * Math.sin(i * 12.9898 + name.length)),
      )
}

describe('saving', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const open: FastLanguageModel[] = []
  afterEach(() => open.splice(0).forEach((model) => model.dispose()))

  async function tuned(
    options: PeftOptions = {},
    modelName = starter,
  ): Promise<{ model: FastLanguageModel; loaded: LoadedModel }> {
    const model = (await FastLanguageModel.fromPretrained({ modelName, threads: 1 })).getPeftModel({
      r: 4,
      loraAlpha: 8,
      ...options,
    })
    open.push(model)
    const loaded = await model.load()
    return { model, loaded }
  }

  /** Logits of a saved folder: a model, or an adapter with its base. */
  async function logitsOf(saved: string): Promise<Float32Array> {
    const generator = await FastLanguageModel.forInference({ modelName: saved, threads: 1 })
    try {
      return await allLogits(generator.model, generator.model.trained, probes)
    } finally {
      generator.dispose()
    }
  }

  it('an adapter has PEFT’s names and keys, and loads back bit for bit', async () => {
    const { model, loaded } = await tuned({ useRslora: true, targetModules: ['q_proj', 'down_proj'], loraDropout: 0.1 })
    randomise(loaded)
    const target = join(folder, 'adapter')
    await model.savePretrained(target)
    const config = JSON.parse(readFileSync(join(target, 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    const expected = {
      peft_type: 'LORA',
      task_type: 'CAUSAL_LM',
      r: 4,
      lora_alpha: 8,
      lora_dropout: 0.1,
      use_rslora: true,
      target_modules: ['q_proj', 'down_proj'],
      base_model_name_or_path: starter,
      bias: 'none',
      fan_in_fan_out: false,
      modules_to_save: null,
      inference_mode: true,
    }
    assert.deepEqual(Object.fromEntries(Object.keys(expected).map((key) => [key, config[key]])), expected)
    const { tensors } = await openTensorSource(join(target, 'adapter_model.safetensors'))
    assert.equal(tensors.size, 5 * 2 * 2)
    assert.deepEqual(tensors.get('base_model.model.model.layers.3.mlp.down_proj.lora_A.weight')!.shape, [4, 172])
    assert.deepEqual(tensors.get('base_model.model.model.layers.3.mlp.down_proj.lora_B.weight')!.shape, [64, 4])
    assert.ok(existsSync(join(target, 'tokenizer.json')))
    const again = await tuned({ useRslora: true, targetModules: ['q_proj', 'down_proj'] }, target)
    for (const { name } of loaded.patched.layout.parameters)
      assert.deepEqual(again.loaded.readParameter(name), loaded.readParameter(name))
    assertClose(await logitsOf(target), await allLogits(loaded, loaded.trained, probes), 1e-6, 'logits')
  })

  it('a merged model answers as the adapter does, within the rounding to 16 bits', async () => {
    const { model, loaded } = await tuned({ targetModules: 'all-linear' })
    randomise(loaded, 0.15)
    const [base, adapted] = [await allLogits(loaded, loaded.base, probes), await allLogits(loaded, loaded.trained, probes)]
    assert.ok(relativeError(adapted, base) > 0.1, 'the adapter does something')
    const target = join(folder, 'merged')
    const { error, allowed } = await model.savePretrainedMerged(target, { maxShardSize: '5GB', probes })
    assert.ok(error < allowed)
    assertClose(await logitsOf(target), adapted, 1.5e-2, 'logits')
    for (const name of ['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'])
      assert.ok(existsSync(join(target, name)), name)
    const config = JSON.parse(readFileSync(join(target, 'config.json'), 'utf8')) as {
      dtype?: string
      torch_dtype?: string
      tie_word_embeddings: boolean
    }
    const { tensors } = await openTensorSource(target)
    assert.deepEqual([...new Set([...tensors.values()].map(({ dtype }) => dtype))], ['BF16'])
    assert.equal(config.dtype ?? config.torch_dtype, 'bfloat16')
    // One matrix against W + (alpha / r)·B·A in double precision.
    const source = await openTensorSource(starter)
    const name = 'model.layers.2.self_attn.k_proj'
    const [w, a, b] = [
      await readFloat32(requireTensor(source, `${name}.weight`)),
      loaded.readParameter(`${name}.lora_A.weight`),
      loaded.readParameter(`${name}.lora_B.weight`),
    ]
    const expected = Array.from(
      w,
      (value, i) => value + 2 * [0, 1, 2, 3].reduce((sum, k) => sum + b[Math.floor(i / 64) * 4 + k]! * a[k * 64 + (i % 64)]!, 0),
    )
    assertClose(await readFloat32(requireTensor(await openTensorSource(target), `${name}.weight`)), expected, 3e-3, name)
  })

  it('shards with an index, and loads back', async () => {
    const { model, loaded } = await tuned()
    randomise(loaded)
    const target = join(folder, 'shards')
    await model.savePretrainedMerged(target, { maxShardSize: '100KB', probes })
    const files = readdirSync(target).filter((name) => /^model-\d{5}-of-\d{5}\.safetensors$/.test(name))
    assert.ok(files.length > 3, files.join())
    const index = JSON.parse(readFileSync(join(target, 'model.safetensors.index.json'), 'utf8')) as {
      weight_map: Record<string, string>
    }
    assert.deepEqual([...new Set(Object.values(index.weight_map))].sort(), files.sort())
    assertClose(await logitsOf(target), await allLogits(loaded, loaded.trained, probes), 1.5e-2, 'logits')
  })

  it('a merge that does not answer alike fails and leaves what was there', async () => {
    const { loaded } = await tuned()
    randomise(loaded)
    // A disk that changes signs: what a wrong merge would look like.
    const fs: FileSystem = {
      ...nodeFileSystem,
      async create(path, mode) {
        const file = await nodeFileSystem.create(path, mode)
        return {
          ...file,
          write: (data, position) =>
            file.write(position > 0 ? data.map((byte, i) => (i % 256 === 255 ? byte ^ 0x80 : byte)) : data, position),
        }
      },
    }
    const target = join(folder, 'mismatch')
    await assert.rejects(
      saveMerged(loaded, target, { maxShardSize: '5GB', probes, fs }),
      failure('VERIFY', /answers differently.*relative difference.*Nothing was saved/, /adapter is intact/),
    )
    assert.ok(!existsSync(target))
    mkdirSync(target)
    writeFileSync(join(target, 'mine.txt'), 'mine')
    await assert.rejects(
      saveMerged(loaded, target, { maxShardSize: '5GB', probes, fs }),
      failure('VERIFY', /answers differently/),
    )
    assert.deepEqual(readdirSync(target), ['mine.txt'])
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.includes('mismatch.')),
      [],
    )
  })

  it('a head trained apart on a tied model becomes a model that is not tied', async () => {
    const { model, loaded } = await tuned({ modulesToSave: ['lm_head'] })
    const head = loaded.readParameter('lm_head.weight')
    loaded.writeParameter(
      'lm_head.weight',
      head.map((value, i) => value * (1 + 0.3 * Math.sin(i))),
    )
    const adapted = await allLogits(loaded, loaded.trained, probes)
    assert.ok(relativeError(adapted, await allLogits(loaded, loaded.base, probes)) > 0.05)
    const [adapter, merged] = [join(folder, 'head-adapter'), join(folder, 'head-merged')]
    await model.savePretrained(adapter)
    await model.savePretrainedMerged(merged, { maxShardSize: '5GB', probes })
    const { saved, config } = await openPeftAdapter(adapter)
    assert.deepEqual([[...saved.keys()], config.modulesToSave], [['lm_head.weight'], ['lm_head']])
    assert.equal(
      (JSON.parse(readFileSync(join(merged, 'config.json'), 'utf8')) as { tie_word_embeddings: boolean }).tie_word_embeddings,
      false,
    )
    assertClose(await logitsOf(adapter), adapted, 1e-6, 'adapter')
    assertClose(await logitsOf(merged), adapted, 1.5e-2, 'merged')
  })

  it('a full fine-tune is saved whole, loads and generates', async () => {
    const dir = await train(
      makeRecipe(folder, {
        training: { training_type: 'full', learning_rate: 1e-3, max_steps: 10 },
        save: { method: ['merged_16bit'] },
      }),
    )
    const generator = await FastLanguageModel.forInference({ modelName: join(dir, 'merged'), threads: 1 })
    try {
      const [made] = await generator.complete([generator.tokenizer.encode('Once upon a time', { addSpecialTokens: true })], {
        maxNewTokens: 30,
        sampling: greedy,
        stop: [],
        seed: 0,
      })
      assert.ok(made!.text.length > 20, made!.text)
      assert.ok(relativeError(await logitsOf(join(dir, 'merged')), await logitsOf(starter)) > 0.01)
    } finally {
      generator.dispose()
    }
  })

  it('a run with both methods makes both, in save.path when it is given', async () => {
    const path = join(folder, 'both')
    const outputs: string[] = []
    await train(makeRecipe(folder, { save: { method: ['lora', 'merged_16bit'], path } }), {
      onOutput: (kind) => outputs.push(kind),
    })
    assert.deepEqual(
      [readdirSync(path).sort(), outputs],
      [
        ['adapter', 'merged'],
        ['adapter', 'merged'],
      ],
    )
  })

  it('a disk that is full while saving leaves the old folder as it was', async () => {
    const { model, loaded } = await tuned()
    const [adapter, merged] = [join(folder, 'full-adapter'), join(folder, 'full-merged')]
    await model.savePretrained(adapter)
    await model.savePretrainedMerged(merged, { maxShardSize: '5GB', probes })
    const contents = () =>
      [adapter, merged].flatMap((place) =>
        readdirSync(place)
          .sort()
          .map((name) => readFileSync(join(place, name), 'base64')),
      )
    const before = contents()
    randomise(loaded)
    for (let failAt = 0; failAt < 6; failAt += 1) {
      await assert.rejects(
        saveAdapter(loaded, adapter, { fs: failingFileSystem(failAt, 'ENOSPC') }),
        failure('FILE_WRITE', /full-adapter/),
      )
      await assert.rejects(
        saveMerged(loaded, merged, { maxShardSize: '5GB', probes, fs: failingFileSystem(failAt, 'ENOSPC') }),
        failure('FILE_WRITE', /full-merged/),
      )
    }
    assert.deepEqual(contents(), before)
    assert.deepEqual(
      readdirSync(folder).filter((name) => /^full-.*\./.test(name)),
      [],
    )
    await model.savePretrained(adapter)
    assert.notDeepEqual(contents(), before)
  })

  it('an adapter of another shape or other modules is refused by name', async () => {
    const { model } = await tuned({ targetModules: ['q_proj'] })
    const target = join(folder, 'narrow')
    await model.savePretrained(target)
    const dirOf = (lora: Record<string, unknown>) => train(makeRecipe(folder, { lora: { init_adapter: target, ...lora } }))
    await assert.rejects(
      dirOf({ lora_r: 8, target_modules: ['q_proj'] }),
      failure('MODEL_INVALID', /q_proj\.lora_A\.weight has shape \[4, 64\], but this recipe needs \[8, 64\]/, /lora_r/),
    )
    await assert.rejects(
      dirOf({ target_modules: ['q_proj', 'v_proj'] }),
      failure('MODEL_INVALID', /v_proj\.lora_A\.weight is missing/, /target_modules/),
    )
  })

  it('an adapter whose base has moved with it is found beside it', async () => {
    const [base, adapter] = [join(folder, 'moved', 'base'), join(folder, 'moved', 'adapter')]
    cpSync(starter, base, { recursive: true })
    const { model } = await tuned({}, base)
    await model.savePretrained(adapter)
    const path = join(adapter, 'adapter_config.json')
    writeFileSync(path, readFileSync(path, 'utf8').replace(base, 'base'))
    assertClose(await logitsOf(adapter), await logitsOf(base), 1e-6, 'logits')
    writeFileSync(path, readFileSync(path, 'utf8').replace('"base"', '"./elsewhere"'))
    await assert.rejects(
      logitsOf(adapter),
      failure('FILE_NOT_FOUND', /base model \.\/elsewhere was not found/, /Name the base model/),
    )
  })
})
