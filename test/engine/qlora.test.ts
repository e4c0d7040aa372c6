import { strict as assert } from 'node:assert'
import { cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { isQuantised } from '../../engine/graph/dtype.ts'
import { cpuTarget } from '../../engine/graph/target.ts'
import { quantStateJson } from '../../engine/io/bitsandbytes.ts'
import { openTensorSource, readTensorBytes } from '../../engine/io/tensorSource.ts'
import { writeSafetensors } from '../../engine/io/safetensorsWriter.ts'
import { listCheckpoints } from '../../engine/run/checkpoints.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel, type PatchOptions, type Training } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { Generator } from '../../engine/generate/generator.ts'
import { greedy } from '../../engine/generate/sampler.ts'
import { madeUpBatch } from '../../engine/bench/batches.ts'
import { Trainer } from '../../engine/train/trainer.ts'
import { planTraining, type TrainingPlan } from '../../engine/train/trainingPlan.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { adapterBytes, losses, makeRecipe, starter, temporaryFolder, train } from './support.ts'

/** The starter in 4 bits, as a run with save.method merged_4bit leaves it. */
async function quantisedStarter(folder: string): Promise<{ run: string; model: string }> {
  const run = await train(
    makeRecipe(folder, {
      training: { load_in_4bit: true, max_steps: 12, optim: 'adamw_8bit' },
      save: { method: ['lora', 'merged_4bit'] },
    }),
  )
  return { run, model: join(run, 'merged-4bit') }
}

const patched = async (folder: string, training: Training = { kind: 'none' }, options: PatchOptions = {}) =>
  patchModel(await describeModel(folder), training, cpuTarget(), options)

async function load(folder: string, options: PatchOptions = {}): Promise<LoadedModel> {
  const runtime = new Runtime({ kind: 'cpu', threads: 1 })
  try {
    return await LoadedModel.load(await patched(folder, { kind: 'none' }, options), runtime, { seed: 0 })
  } finally {
    runtime.dispose()
  }
}

/** A copy of a model with tensors changed: a function gives the bytes anew, or undefined to leave the tensor out. */
async function changed(
  model: string,
  folder: string,
  change: (name: string, bytes: Uint8Array) => Uint8Array | undefined,
): Promise<string> {
  cpSync(model, folder, { recursive: true })
  const source = await openTensorSource(model)
  const tensors = []
  for (const tensor of source.tensors.values()) {
    const data = change(tensor.name, await readTensorBytes(tensor))
    if (data !== undefined)
      tensors.push({
        name: tensor.name,
        dtype: tensor.dtype,
        shape: data.length === tensor.bytes ? tensor.shape : [data.length],
        data,
      })
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return folder
}

/** Two epochs of six steps: the second has less loss. */
function assertFalls(values: readonly number[], what = ''): void {
  const mean = (from: number) => values.slice(from, from + 6).reduce((sum, value) => sum + value, 0) / 6
  assert.ok(values.every(Number.isFinite) && mean(6) < mean(0), `${what} ${values.join()}`)
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString()
const state = 'quant_state.bitsandbytes__nf4'

describe('QLoRA', () => {
  const folder = temporaryFolder()
  let model: string
  let run: string
  before(async () => {
    ;({ run, model } = await quantisedStarter(join(folder, 'run')))
  })

  it('trains on 4-bit weights with 8-bit moments, and the loss falls', () => {
    const values = losses(run)
    assert.equal(values.length, 12)
    assertFalls(values)
  })

  it('saves a model that transformers with bitsandbytes loads, and reads it again in 4 bits', async () => {
    const config = JSON.parse(readFileSync(join(model, 'config.json'), 'utf8')) as {
      quantization_config: Record<string, unknown>
    }
    assert.equal(config.quantization_config.bnb_4bit_quant_type, 'nf4')
    assert.equal(config.quantization_config.bnb_4bit_use_double_quant, true)
    assert.ok(!readdirSync(model).includes('16bit'))
    const { arena } = await patched(model)
    const types = [...arena.weights.values()].map(({ value }) => value.storage.dtype)
    assert.ok(types.filter(isQuantised).length > 10, types.join())
    await load(model)
  })

  it('generates in 4 bits, token by token, what the whole text gives', async () => {
    const runtime = new Runtime({ kind: 'cpu', threads: 2 })
    const loaded = await LoadedModel.load(await patched(model), runtime, { seed: 0 })
    const prompts = [Int32Array.of(1, 30, 80, 12), Int32Array.of(1, 55)]
    const generator = new Generator(loaded, loaded.base, { batch: 2, maxLength: 24 })
    const made = await generator.generate(
      prompts.map((ids) => ({ ids, seed: 0 })),
      { maxNewTokens: 12, sampling: greedy, stopIds: new Set() },
    )
    for (const [index, ids] of prompts.entries()) {
      const whole = Int32Array.from([...ids, ...made[index]!])
      const logits = await allLogits(loaded, loaded.base, [whole])
      const { vocabulary } = loaded.spec
      const best = (at: number) =>
        logits
          .subarray(at * vocabulary, (at + 1) * vocabulary)
          .reduce((most, value, id, row) => (value > row[most]! ? id : most), 0)
      assert.deepEqual(
        made[index],
        Array.from({ length: 12 }, (_, i) => best(ids.length - 1 + i)),
      )
    }
    runtime.dispose()
  })

  it('trains on copies that stay unpacked as on matrices that each product unpacks, bit by bit', async () => {
    const lora: Training = { kind: 'lora', r: 4, alpha: 8, dropout: 0, rslora: false, targets: 'all-linear', modulesToSave: [] }
    const description = await patched(model, lora)
    const target = { ...cpuTarget(), unpacked: 'f32' as const }
    const losses = async (available: (needed: number) => number) => {
      const runtime = new Runtime({ kind: 'cpu', threads: 2 })
      try {
        const loaded = await LoadedModel.load(patchModel(description.model, lora, target), runtime, { seed: 1 })
        const planFor = (availableBytes: number) =>
          planTraining(loaded.patched, {
            checkpointing: 'auto',
            longestSample: 64,
            longestStep: 64,
            sequences: 1,
            evaluates: true,
            availableBytes,
            threads: 2,
          })
        const plan = planFor(available(planFor(Infinity).totalBytes))
        const trainer = new Trainer(loaded, plan, {
          seed: 1,
          maxGradNorm: 1,
          beta1: 0.9,
          beta2: 0.999,
          eps: 1e-8,
          weightDecay: 0,
        })
        const batch = madeUpBatch(64, loaded.spec.vocabulary)
        const values = []
        for (let step = 0; step < 3; ++step)
          values.push((await trainer.step(step, [batch], { default: 1e-2, embedding: 1e-2 })).loss)
        return { plan, values: [...values, await trainer.evaluate([batch])] }
      } finally {
        runtime.dispose()
      }
    }
    const packed = await losses((needed) => 1.9 * needed)
    const kept = await losses((needed) => 20 * needed)
    assert.equal(packed.plan.unpacked.bytes, 0)
    assert.match(kept.plan.summary, /[\d.]+ [KM]B of weights unpacked, micro-steps/)
    assert.ok(kept.plan.totalBytes - packed.plan.totalBytes <= kept.plan.unpacked.bytes && kept.plan.unpacked.bytes > 0)
    const count = (plan: TrainingPlan) => plan.training.plan.commands.filter(({ name }) => name === 'dequantise').length
    assert.ok(count(packed.plan) > 10)
    assert.equal(count(kept.plan), 0)
    assert.deepEqual(kept.values, packed.values)
    assert.ok(packed.values[2]! < packed.values[0]!)
  })

  it('goes on from a checkpoint bit by bit, but not with another optimizer', async () => {
    const recipe = (optim: string, extra: object = {}) =>
      makeRecipe(join(folder, 'resume'), {
        training: { load_in_4bit: true, max_steps: 4, save_steps: 2, optim, ...extra },
        lora: { lora_r: 64 },
      })
    const whole = await train(recipe('adamw_8bit'))
    const { path } = listCheckpoints(join(whole, 'checkpoints'))[0]!
    const types = new Set(
      [...(await openTensorSource(join(path, 'optimizer.safetensors'))).tensors.values()].map(({ dtype }) => dtype),
    )
    assert.deepEqual([...types], ['U8'])
    const resumed = await train(recipe('adamw_8bit', { resume_from: path }))
    assert.deepEqual(adapterBytes(resumed), adapterBytes(whole))
    await assert.rejects(
      train(recipe('lion_8bit', { resume_from: path })),
      (error) => UnslothError.is(error, 'RUN_INVALID') && error.message.includes('moments are those of adamw8'),
    )
  })

  it('trains with every optimizer', async () => {
    for (const optim of ['lion_32bit', 'lion_8bit', 'sgd', 'adafactor', 'paged_adamw_8bit'])
      assertFalls(
        losses(
          await train(
            makeRecipe(join(folder, optim), { training: { optim, max_steps: 12, learning_rate: optim === 'sgd' ? 0.04 : 1e-3 } }),
          ),
        ),
        optim,
      )
  })

  it('refuses to train 4-bit weights in full, and says what to do', async () => {
    await assert.rejects(
      patched(model, { kind: 'full' }),
      (error) => UnslothError.is(error, 'RECIPE') && (error.hint ?? '').includes('16-bit version'),
    )
    await assert.rejects(
      patched(starter, { kind: 'full' }, { quantisation: { kind: 'load', type: 'nf4', nested: true } }),
      (error) => UnslothError.is(error, 'RECIPE') && (error.hint ?? '').includes('load_in_4bit: false'),
    )
  })

  const damage: readonly (readonly [string, RegExp, (name: string, bytes: Uint8Array) => Uint8Array | undefined])[] = [
    [
      'a state that is cut off',
      /quant_state.*is not the JSON of a quantisation state/,
      (name, bytes) => (name.endsWith(state) ? bytes.slice(0, 30) : bytes),
    ],
    [
      'a state of an unknown type',
      /quant_state\.bitsandbytes__nf4" says quant_type "nf2"/,
      (name, bytes) => (name.endsWith(state) ? Buffer.from(text(bytes).replace('"nf4"', '"nf2"')) : bytes),
    ],
    [
      'maxima that are missing',
      /tensor ".*v_proj\.weight\.absmax" is missing/,
      (name, bytes) => (name.endsWith('layers.1.self_attn.v_proj.weight.absmax') ? undefined : bytes),
    ],
    [
      'scales of maxima that are missing',
      /tensor ".*v_proj\.weight\.nested_absmax" is missing/,
      (name, bytes) => (name.endsWith('layers.1.self_attn.v_proj.weight.nested_absmax') ? undefined : bytes),
    ],
    [
      'scales of maxima that are cut off',
      /nested_absmax" is F32 of 0 bytes, but F32 of 4 are needed/,
      (name, bytes) => (name.endsWith('layers.1.self_attn.v_proj.weight.nested_absmax') ? bytes.slice(0, -4) : bytes),
    ],
    [
      'an offset that is no number',
      /has no valid nested_offset/,
      (name, bytes) =>
        name.endsWith(state) ? Buffer.from(text(bytes).replace(/"nested_offset": [^}]*/, '"nested_offset": NaN')) : bytes,
    ],
    [
      'a state that is missing',
      /is quantised, but its quant_state is missing/,
      (name, bytes) => (name.endsWith(`layers.0.self_attn.q_proj.weight.${state}`) ? undefined : bytes),
    ],
    [
      'a wrong block size',
      /has blocksize 48/,
      (name, bytes) => (name.endsWith(state) ? Buffer.from(text(bytes).replace('"blocksize": 64', '"blocksize": 48')) : bytes),
    ],
    [
      'another block size than the maxima',
      /absmax.*blocks of 128 need U8/,
      (name, bytes) => (name.endsWith(state) ? Buffer.from(text(bytes).replace('"blocksize": 64', '"blocksize": 128')) : bytes),
    ],
    [
      'codes that are cut off',
      /has \d+ bytes, but its quant_state asks for \d+/,
      (name, bytes) => (name.endsWith('layers.1.mlp.down_proj.weight') ? bytes.slice(0, -2) : bytes),
    ],
    [
      'a shape that is not the config’s',
      /has shape .* but config.json asks for/,
      (name, bytes) =>
        name.endsWith(`layers.0.self_attn.o_proj.weight.${state}`)
          ? Buffer.from(
              text(bytes).replace(
                /"shape": \[(\d+), (\d+)\]/,
                (_, a: string, b: string) => `"shape": [${Number(a) * 2}, ${Number(b) / 2}]`,
              ),
            )
          : bytes,
    ],
    [
      'a maximum that is NaN',
      /nested_absmax.*holds NaN at 0/,
      (name, bytes) => {
        if (name.endsWith('layers.0.mlp.up_proj.weight.nested_absmax'))
          new DataView(bytes.buffer, bytes.byteOffset).setFloat32(0, NaN, true)
        return bytes
      },
    ],
  ]
  for (const [what, message, change] of damage)
    it(`refuses ${what}`, async () => {
      const copy = await changed(model, join(folder, what.replaceAll(' ', '-')), change)
      await assert.rejects(
        load(copy),
        (error) => UnslothError.is(error, 'MODEL_INVALID') && message.test(error.message) && error.message.includes(copy),
      )
    })

  it('refuses a maximum in fp32 that is NaN', async () => {
    const plain = await changed(model, join(folder, 'single'), (_, bytes) => bytes)
    const source = await openTensorSource(model)
    const weight = [...source.tensors.keys()].find((name) => name.endsWith('layers.0.mlp.up_proj.weight'))!
    const { shape } = JSON.parse(text(await readTensorBytes(source.tensors.get(`${weight}.${state}`)!))) as { shape: number[] }
    const maxima = new Float32Array((shape[0]! * shape[1]!) / 64).fill(0.1)
    maxima[3] = NaN
    const tensors = []
    for (const tensor of source.tensors.values()) {
      const own = tensor.name.startsWith(`${weight}.`)
      if (own && tensor.name.includes('nested')) continue
      const data = !own
        ? await readTensorBytes(tensor)
        : tensor.name.endsWith('.absmax')
          ? new Uint8Array(maxima.buffer)
          : tensor.name.endsWith(state)
            ? quantStateJson({ type: 'nf4', dtype: 'bf16', shape })
            : await readTensorBytes(tensor)
      const single = own && tensor.name.endsWith('.absmax')
      tensors.push({
        name: tensor.name,
        dtype: single ? ('F32' as const) : tensor.dtype,
        shape: single ? [maxima.length] : data.length === tensor.bytes ? tensor.shape : [data.length],
        data,
      })
    }
    await writeSafetensors(join(plain, 'model.safetensors'), tensors)
    await assert.rejects(
      load(plain),
      (error) =>
        UnslothError.is(error, 'MODEL_INVALID') &&
        error.message.includes(`${weight} holds 1 values that are NaN`) &&
        error.message.includes(plain),
    )
  })

  it('refuses what other tools have quantised, and says what to name', async () => {
    const copy = await changed(model, join(folder, 'gptq'), (_, bytes) => bytes)
    const file = join(copy, 'config.json')
    writeFileSync(file, readFileSync(file, 'utf8').replace('"bitsandbytes"', '"gptq"'))
    await assert.rejects(
      load(copy),
      (error) =>
        UnslothError.is(error, 'MODEL_UNSUPPORTED') &&
        error.message.includes('quant_method "gptq"') &&
        (error.hint ?? '').includes('16-bit version'),
    )
  })

  it('refuses a number that is NaN while it is quantised, and names the tensor', async () => {
    const { name, path } = [...(await openTensorSource(starter)).tensors.values()].find((tensor) =>
      tensor.name.endsWith('layers.0.mlp.up_proj.weight'),
    )!
    const copy = await changed(starter, join(folder, 'nan'), (tensor, bytes) => {
      if (tensor === name) bytes.fill(0xff, 0, 2)
      return bytes
    })
    assert.ok(path.includes(starter))
    await assert.rejects(
      load(copy, { quantisation: { kind: 'load', type: 'nf4', nested: false } }),
      (error) => UnslothError.is(error, 'MODEL_INVALID') && error.message.includes(name),
    )
  })
})
