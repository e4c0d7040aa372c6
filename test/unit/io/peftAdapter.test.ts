import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  adapterKey,
  openPeftAdapter,
  writePeftAdapter,
  type AdapterPart,
  type AdapterTensor,
} from '../../../engine/io/peftAdapter.ts'
import { loraConfigJson, loraScaling, readLoraConfig, type LoraConfig } from '../../../engine/io/peftConfig.ts'
import { writeSafetensors, type NamedTensor } from '../../../engine/io/safetensorsWriter.ts'
import { readTensorBytes, streamTensor } from '../../../engine/io/tensorSource.ts'
import { failingFileSystem, failure, fixture, useFolder } from './support.ts'

const plain = JSON.parse(readFileSync(fixture('adapter/adapter_config.json'), 'utf8')) as Record<string, unknown>
const read = (changes: Record<string, unknown>): ReturnType<typeof readLoraConfig> =>
  readLoraConfig({ values: { ...plain, ...changes }, where: 'adapter_config.json' })

describe('adapter_config.json', () => {
  for (const name of ['adapter/adapter_config.json', 'llama-embed-adapter_config.json', 'mixtral-experts-adapter_config.json'])
    it(`is written as PEFT 0.21 writes it (${name})`, () => {
      const text = readFileSync(fixture(name), 'utf8')
      const { lora, warnings } = readLoraConfig({ values: JSON.parse(text) as Record<string, unknown>, where: name })
      assert.equal(loraConfigJson(lora), text)
      assert.deepEqual(warnings, [])
    })

  it('keeps the Python types of numbers', () => {
    const text = loraConfigJson({
      ...read({}).lora,
      alpha: 0.5,
      dropout: 0.05,
      rankPattern: { 'layers.0.q_proj': 2 },
      rslora: true,
      targetModules: '.*q_proj',
    })
    for (const line of [
      '"lora_alpha": 0.5,',
      '"lora_dropout": 0.05,',
      '"layers.0.q_proj": 2\n',
      '"use_rslora": true,',
      '"target_modules": ".*q_proj",',
      '"r": 4,',
    ])
      assert.ok(text.includes(line), line)
  })

  it('computes the scale of every module', () => {
    const config: LoraConfig = {
      ...read({}).lora,
      r: 4,
      alpha: 8,
      rankPattern: { 'layers\\.0\\..*q_proj': 16, '^model.lm_head': 1 },
      alphaPattern: { q_proj: 32 },
    }
    assert.deepEqual(loraScaling(config, 'model.layers.0.self_attn.q_proj'), { r: 16, alpha: 32, scale: 2 })
    assert.deepEqual(loraScaling(config, 'model.layers.10.self_attn.q_proj'), { r: 4, alpha: 32, scale: 8 })
    assert.deepEqual(loraScaling(config, 'model.layers.1.mlp.xq_proj'), { r: 4, alpha: 8, scale: 2 })
    assert.equal(loraScaling(config, 'model.lm_head').r, 1)
    assert.equal(loraScaling({ ...config, rslora: true }, 'model.layers.0.self_attn.q_proj').scale, 8)
    assert.throws(
      () => loraScaling({ ...config, rankPattern: { '(': 1 } }, 'x'),
      failure('MODEL_INVALID', /"\(" is not a regular expression/),
    )
  })

  const refusals: [change: Record<string, unknown>, message: RegExp][] = [
    [{ lora_bias: true }, /"lora_bias" is set: .*bias in lora_B/],
    [{ alora_invocation_tokens: [1, 2] }, /aLoRA/],
    [{ bias: 'some' }, /"bias" is "some"/],
    [{ peft_type: 'IA3' }, /of type "IA3", not LORA/],
    [{ layer_replication: [[0, 4]] }, /repeats layers/],
    [{ trainable_token_indices: [5] }, /single rows/],
    [{ init_lora_weights: 'pissa_niter_4' }, /changes the base weights/],
    [{ use_something_new: true }, /"use_something_new" is set, a feature of a newer PEFT/],
  ]
  for (const [change, message] of refusals)
    it(`refuses ${Object.keys(change)[0]} with the reason`, () => {
      assert.throws(() => read(change), failure('MODEL_UNSUPPORTED', message, /Merge the adapter/))
    })

  it('names keys that are missing or wrong, and warns of unknown ones', () => {
    assert.throws(() => read({ r: undefined }), failure('MODEL_INVALID', /"r" is missing/))
    assert.throws(() => read({ r: 0 }), failure('MODEL_INVALID', /"r"/))
    assert.throws(() => read({ r: '4' }), failure('MODEL_INVALID', /"r"/))
    assert.throws(() => read({ lora_alpha: null }), failure('MODEL_INVALID', /"lora_alpha" is missing/))
    assert.throws(() => read({ target_modules: [1] }), failure('MODEL_INVALID', /"target_modules"/))
    assert.throws(() => read({ rank_pattern: { q: 'x' } }), failure('MODEL_INVALID', /rank_pattern.*"q"/))
    assert.match(read({ wobble: 3 }).warnings.join(), /"wobble" is not known/)
    assert.deepEqual(read({ wobble: null, runtime_config: { a: 1 } }).warnings, [])
  })
})

describe('PEFT adapter', () => {
  const folder = useFolder()
  const f32 = (name: string, shape: number[]): NamedTensor => ({
    name,
    dtype: 'F32',
    shape,
    data: new Uint8Array(4 * shape.reduce((a, b) => a * b, 1)),
  })
  const openWith = async (
    tensors: NamedTensor[],
    changes: Record<string, unknown> = {},
  ): Promise<Awaited<ReturnType<typeof openPeftAdapter>>> => {
    writeFileSync(join(folder(), 'adapter_config.json'), JSON.stringify({ ...plain, ...changes }))
    await writeSafetensors(join(folder(), 'adapter_model.safetensors'), tensors)
    return openPeftAdapter(folder())
  }
  const q = 'base_model.model.model.layers.0.self_attn.q_proj'
  const pair = [f32(`${q}.lora_A.weight`, [4, 6]), f32(`${q}.lora_B.weight`, [5, 4])]

  it('opens an adapter of PEFT and writes it again, byte for byte', async () => {
    const adapter = await openPeftAdapter(fixture('adapter'))
    assert.equal(adapter.modules.size, 14)
    assert.equal(adapter.saved.size, 0)
    const module = adapter.modules.get('model.layers.1.mlp.down_proj')!
    assert.deepEqual(
      [module.a.shape, module.b.shape, module.r, module.alpha, module.scale, module.embedding],
      [[4, 128], [64, 4], 4, 8, 2, false],
    )
    const tensors = [...adapter.modules.values()].flatMap(({ module: name, a, b }): AdapterTensor[] => [
      { module: name, part: 'lora_B', dtype: b.dtype, shape: b.shape, data: () => streamTensor(b) },
      { module: name, part: 'lora_A', dtype: a.dtype, shape: a.shape, data: () => readTensorBytes(a) },
    ])
    await writePeftAdapter(folder(), adapter.config, tensors)
    for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
      assert.ok(readFileSync(join(folder(), name)).equals(readFileSync(fixture(`adapter/${name}`))), name)
    assert.equal(readdirSync(folder()).length, 2)
  })

  it('knows embeddings, modules stored whole and the names of older versions', async () => {
    const { modules, saved } = await openWith([
      ...pair,
      f32('base_model.model.model.embed_tokens.lora_embedding_A', [4, 9]),
      f32('base_model.model.model.embed_tokens.lora_embedding_B', [6, 4]),
      f32('base_model.model.model.embed_tokens.base_layer.weight', [9, 6]),
      f32('base_model.model.lm_head.modules_to_save.default.weight', [9, 6]),
      f32('base_model.model.model.norm.weight', [6]),
      f32('base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight', [4, 6]),
      f32('base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight', [7, 4]),
    ])
    assert.deepEqual([...modules.keys()].sort(), [
      'model.embed_tokens',
      'model.layers.0.mlp.up_proj',
      'model.layers.0.self_attn.q_proj',
    ])
    assert.equal(modules.get('model.embed_tokens')!.embedding, true)
    assert.deepEqual([...saved.keys()].sort(), ['lm_head.weight', 'model.embed_tokens.weight', 'model.norm.weight'])
  })

  it('gives tensors the names that PEFT expects', () => {
    const parts: AdapterPart[] = ['lora_A', 'lora_B', 'lora_embedding_A', 'lora_embedding_B', 'weight', 'bias']
    assert.deepEqual(
      parts.map((part) => adapterKey('m', part)),
      ['lora_A.weight', 'lora_B.weight', 'lora_embedding_A', 'lora_embedding_B', 'weight', 'bias'].map(
        (end) => `base_model.model.m.${end}`,
      ),
    )
  })

  it('takes magnitudes of DoRA under both names that PEFT has for them', async () => {
    for (const name of ['lora_magnitude_vector', 'lora_magnitude_vector.default.weight']) {
      const { modules } = await openWith([f32(`${q}.${name}`, [5]), ...pair], { use_dora: true })
      assert.deepEqual(modules.get('model.layers.0.self_attn.q_proj')!.magnitude!.shape, [5])
    }
  })

  it('takes ranks from rank_pattern', async () => {
    const { modules } = await openWith(pair, { r: 8, rank_pattern: { q_proj: 4 } })
    assert.equal(modules.get('model.layers.0.self_attn.q_proj')!.scale, 2)
  })

  it('refuses what is incomplete or does not fit', async () => {
    await assert.rejects(openWith(pair.slice(0, 1)), failure('MODEL_INVALID', /q_proj" lacks lora_B/))
    await assert.rejects(
      openWith(pair, { r: 8 }),
      failure('MODEL_INVALID', /lora_A \[4, 6\] and lora_B \[5, 4\] do not fit r = 8/),
    )
    await assert.rejects(openWith([pair[0]!, f32(`${q}.lora_B.weight`, [5, 3])]), failure('MODEL_INVALID', /do not fit/))
    await assert.rejects(
      openWith([pair[0]!, f32(`${q}.lora_B.weight`, [5, 4, 1, 1])]),
      failure('MODEL_UNSUPPORTED', /not a linear layer/),
    )
    await assert.rejects(
      openWith([...pair, f32(`${q}.lora_magnitude_vector`, [5])]),
      failure('MODEL_INVALID', /q_proj" has lora_magnitude_vector, but adapter_config.json says use_dora: false/),
    )
    await assert.rejects(openWith(pair, { use_dora: true }), failure('MODEL_INVALID', /q_proj" lacks lora_magnitude_vector/))
    await assert.rejects(
      openWith([...pair, f32(`${q}.lora_magnitude_vector`, [6])], { use_dora: true }),
      failure('MODEL_INVALID', /lora_magnitude_vector \[6\] does not fit lora_B \[5, 4\]/),
    )
    const table = [
      f32('base_model.model.e.lora_embedding_A', [4, 9]),
      f32('base_model.model.e.lora_embedding_B', [5, 4]),
      f32('base_model.model.e.lora_magnitude_vector', [5]),
    ]
    await assert.rejects(openWith(table, { use_dora: true }), failure('MODEL_UNSUPPORTED', /"e" is an embedding with DoRA/))
    await assert.rejects(openWith([...pair, f32(`${q}.lora_B.bias`, [5])]), failure('MODEL_UNSUPPORTED', /bias in the adapter/))
    await assert.rejects(
      openWith([f32('model.layers.0.weight', [1])]),
      failure('FILE_FORMAT', /does not begin with "base_model\.model\."/),
    )
    await assert.rejects(
      openWith([{ ...pair[0]!, dtype: 'I8', data: new Uint8Array(24) }]),
      failure('MODEL_UNSUPPORTED', /has type I8/),
    )
    await assert.rejects(openWith([]), failure('MODEL_INVALID', /no tensors/))
  })

  it('says what is missing', async () => {
    copyFileSync(fixture('adapter/adapter_config.json'), join(folder(), 'adapter_config.json'))
    await assert.rejects(
      openPeftAdapter(folder()),
      failure('FILE_NOT_FOUND', /adapter_model\.safetensors: no such file/, /incomplete/),
    )
    writeFileSync(join(folder(), 'adapter_model.bin'), '')
    await assert.rejects(openPeftAdapter(folder()), failure('FILE_NOT_FOUND', /adapter_model\.safetensors/, /pickle/))
  })

  it('leaves no half adapter when the disk is full', async () => {
    const { lora } = read({})
    const tensors: AdapterTensor[] = [{ module: 'm', part: 'weight', dtype: 'F32', shape: [1], data: new Uint8Array(4) }]
    await assert.rejects(
      writePeftAdapter(folder(), lora, tensors, { fs: failingFileSystem(2, 'ENOSPC') }),
      failure('FILE_WRITE', /disk is full/),
    )
    assert.deepEqual(readdirSync(folder()), [])
  })
})
