import { strict as assert } from 'node:assert'
import { cpSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { isQuantised } from '../../engine/graph/dtype.ts'
import { cpuTarget } from '../../engine/graph/target.ts'
import { numberToBfloat16 } from '../../engine/io/tensorConvert.ts'
import { openTensorSource, readFloat32, readTensorBytes, type TensorSource } from '../../engine/io/tensorSource.ts'
import { writeSafetensors, type TensorDeclaration } from '../../engine/io/safetensorsWriter.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel, type PatchOptions } from '../../engine/runtime/patchedModel.ts'
import { nf4 } from '../../engine/runtime/quantisedWeights.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { saveMerged4bit } from '../../engine/save/save4bit.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { failure, relativeError, temporaryFolder } from './support.ts'

const probes = [Int32Array.of(1, 10, 14, 20, 5, 3), Int32Array.from({ length: 30 }, (_, i) => 3 + ((i * 37) % 60))]

async function loaded<T>(folder: string, use: (model: LoadedModel) => Promise<T>, options: PatchOptions = {}): Promise<T> {
  const runtime = new Runtime({ kind: 'cpu', threads: 2 })
  try {
    return await use(
      await LoadedModel.load(patchModel(await describeModel(folder), { kind: 'none' }, cpuTarget(), options), runtime, {
        seed: 0,
      }),
    )
  } finally {
    runtime.dispose()
  }
}

const logitsOf = (folder: string, options: PatchOptions = {}) =>
  loaded(folder, (model) => allLogits(model, model.base, probes), options)

/** The 16-bit values of a tensor that bitsandbytes has quantised, from the format's definition. */
async function dequantised({ tensors }: TensorSource, name: string): Promise<{ shape: number[]; values: Uint16Array }> {
  const bytes = (key: string) => readTensorBytes(tensors.get(`${name}${key}`)!)
  const numbers = (key: string) => readFloat32(tensors.get(`${name}${key}`)!)
  const state = JSON.parse(Buffer.from(await bytes('.quant_state.bitsandbytes__nf4')).toString()) as {
    shape: number[]
    blocksize: number
    nested_blocksize: number
    nested_offset: number
  }
  const [packed, code, maxima, scales, map] = [
    await bytes(''),
    await numbers('.quant_map'),
    await bytes('.absmax'),
    await numbers('.nested_absmax'),
    await numbers('.nested_quant_map'),
  ]
  const absmax = Array.from(maxima, (q, i) =>
    Math.fround(Math.fround(map[q]! * scales[Math.floor(i / state.nested_blocksize)]!) + Math.fround(state.nested_offset)),
  )
  const count = state.shape.reduce((product, size) => product * size, 1)
  const values = Uint16Array.from({ length: count }, (_, i) => {
    const byte = packed[i >> 1]!
    return numberToBfloat16(Math.fround(code[i % 2 === 0 ? byte >> 4 : byte & 15]! * absmax[Math.floor(i / state.blocksize)]!))
  })
  return { shape: state.shape, values }
}

/** A copy of a checkpoint in 4 bits with plain tensors in place of those that `which` names. */
async function plainCopy(model: string, folder: string, which: (name: string) => boolean): Promise<string> {
  cpSync(model, folder, { recursive: true })
  const source = await openTensorSource(model)
  const tensors: (TensorDeclaration & { readonly data: Uint8Array })[] = []
  const quantised = [...source.tensors.keys()].flatMap((key) =>
    key.endsWith('.absmax') ? [key.slice(0, -'.absmax'.length)] : [],
  )
  const replaced = quantised.filter(which)
  for (const { name, dtype, shape } of source.tensors.values()) {
    if (replaced.some((weight) => name.startsWith(`${weight}.`))) continue
    if (!replaced.includes(name)) {
      tensors.push({ name, dtype, shape, data: await readTensorBytes(source.tensors.get(name)!) })
      continue
    }
    const plain = await dequantised(source, name)
    tensors.push({ name, dtype: 'BF16', shape: plain.shape, data: new Uint8Array(plain.values.buffer) })
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return folder
}

const stackNames = ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']

for (const [name, stacked] of [
  ['tiny-mixtral-stacked', true],
  ['tiny-mixtral', false],
  ['tiny-qwen3-moe', false],
] as const)
  describe(`experts in 4 bits: ${name}`, () => {
    const folder = temporaryFolder()
    const [source, model] = [join(folder, 'source'), join(folder, '4bit')]

    before(async () => {
      await unpackCase(join(import.meta.dirname, `../fixtures/golden/${name}${packedSuffix}`), source)
      await loaded(source, (plain) => saveMerged4bit(plain, model, { maxShardSize: '5GB', probes }))
    })

    it('are stored as bitsandbytes stores them, and stay so when they are loaded', async () => {
      const { tensors } = await openTensorSource(model)
      const experts = [...tensors.values()].filter(
        (tensor) => tensor.name.includes('.experts.') && tensor.name.endsWith('.quant_state.bitsandbytes__nf4'),
      )
      assert.ok(experts.length > 0)
      if (stacked)
        for (const stack of stackNames) {
          const state = tensors.get(`model.layers.0.${stack}.quant_state.bitsandbytes__nf4`)!
          const { shape } = JSON.parse(Buffer.from(await readTensorBytes(state)).toString()) as { shape: number[] }
          const [before] = [(await openTensorSource(source)).tensors.get(`model.layers.0.${stack}`)!]
          assert.deepEqual(shape, before.shape)
          assert.deepEqual(tensors.get(`model.layers.0.${stack}`)!.shape, [
            shape.reduce((product, size) => product * size, 1) / 2,
            1,
          ])
        }
      const {
        arena,
        model: { entries },
      } = patchModel(await describeModel(model), { kind: 'none' }, cpuTarget())
      const types = entries.filter(({ kind }) => kind === 'experts').map(({ id }) => arena.weights.get(id)!.value.storage.dtype)
      assert.ok(types.length >= 2 && types.every((type) => type === 'q4n'), types.join())
      assert.deepEqual(arena.notes, [])
    })

    it('answer as the model in 16 bits that has their values', async () => {
      const logits = await logitsOf(model)
      assert.deepEqual(logits, await logitsOf(await plainCopy(model, join(folder, 'plain'), () => true)))
      assert.deepEqual(logits, await logitsOf(source, { quantisation: nf4 }), 'quantised while they are loaded')
      const error = relativeError(logits, await logitsOf(source))
      assert.ok(error > 1e-3 && error < 0.5, `${error} from the model before`)
    })

    it('may be skipped where the checkpoint skips them', async () => {
      const skipped = (weight: string) => /layers\.1\..*(experts\.1\.|experts\.down_proj)/.test(weight)
      const dynamic = await plainCopy(model, join(folder, 'dynamic'), skipped)
      const {
        arena,
        model: { entries },
      } = patchModel(await describeModel(dynamic), { kind: 'none' }, cpuTarget(), { quantisation: nf4 })
      const plain = entries.filter(
        ({ id, kind }) => kind === 'experts' && !isQuantised(arena.weights.get(id)!.value.storage.dtype),
      )
      assert.deepEqual(
        plain.map(({ id }) => id),
        stacked ? ['layers.1.expertDown'] : ['layers.1.expertGateUp', 'layers.1.expertDown'],
      )
      assert.equal(arena.notes.length, stacked ? 0 : 2, arena.notes.join())
      assert.deepEqual(await logitsOf(dynamic), await logitsOf(model))
    })
  })

describe('a stack of experts whose state is missing', () => {
  const folder = temporaryFolder()
  it('is refused by name', async () => {
    const [source, model] = [join(folder, 'source'), join(folder, '4bit')]
    await unpackCase(join(import.meta.dirname, `../fixtures/golden/tiny-mixtral-stacked${packedSuffix}`), source)
    await loaded(source, (plain) => saveMerged4bit(plain, model, { maxShardSize: '5GB', probes }))
    const path = join(model, 'model.safetensors')
    const bytes = readFileSync(path)
    const tensors = [...(await openTensorSource(model)).tensors.values()].filter(
      ({ name }) => !name.endsWith(`layers.0.${stackNames[0]!}.quant_state.bitsandbytes__nf4`),
    )
    const kept = tensors.map(({ name, dtype, shape, offset, bytes: count }) => ({
      name,
      dtype,
      shape,
      data: bytes.subarray(offset, offset + count),
    }))
    await writeSafetensors(path, kept)
    await assert.rejects(
      describeModel(model),
      failure('MODEL_INVALID', /experts\.gate_up_proj" is quantised, but its quant_state is missing/),
    )
  })
})

describe('stacks of experts in FP8', () => {
  const folder = temporaryFolder()
  const source = join(folder, 'source')
  before(() => unpackCase(join(import.meta.dirname, `../fixtures/golden/tiny-mixtral-stacked${packedSuffix}`), source))

  /** e4m3 by its bits; its two NaN are not drawn. */
  const e4m3 = (bits: number): number => {
    const [exponent, fraction] = [(bits >> 3) & 15, bits & 7]
    return (bits > 127 ? -1 : 1) * (exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7))
  }

  for (const [what, scaleShape] of [
    ['one scale', () => [1]],
    ['a scale for each expert', (experts: number) => [experts, 1, 1]],
    ['a scale for each row', (experts: number, rows: number) => [experts, rows, 1]],
  ] as const)
    it(`with ${what} stay in one byte and answer as the model with their values`, async () => {
      const [small, plain] = [join(folder, `small-${what}`), join(folder, `plain-${what}`)]
      const [tensors, values]: (TensorDeclaration & { readonly data: Uint8Array })[][] = [[], []]
      for (const tensor of (await openTensorSource(source)).tensors.values()) {
        const { name, dtype, shape } = tensor
        if (shape.length !== 3) {
          const whole = { name, dtype, shape, data: await readTensorBytes(tensor) }
          tensors!.push(whole)
          values!.push(whole)
          continue
        }
        const [experts, rows, cols] = shape as [number, number, number]
        const kept = scaleShape(experts, rows)
        const scales = Float32Array.from(
          { length: kept.reduce((product, size) => product * size, 1) },
          (_, i) => 2e-4 * (1 + (i % 5)),
        )
        const codes = Uint8Array.from({ length: experts * rows * cols }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 24).map(
          (byte) => ((byte & 127) === 127 ? byte - 1 : byte),
        )
        const perScale = codes.length / scales.length
        tensors!.push(
          { name, dtype: 'F8_E4M3', shape, data: codes },
          { name: `${name}_scale_inv`, dtype: 'F32', shape: kept, data: new Uint8Array(scales.buffer) },
        )
        values!.push({
          name,
          dtype: 'BF16',
          shape,
          data: new Uint8Array(
            Uint16Array.from(codes, (code, i) => numberToBfloat16(Math.fround(e4m3(code) * scales[Math.floor(i / perScale)]!)))
              .buffer,
          ),
        })
      }
      for (const [path, all] of [
        [small, tensors!],
        [plain, values!],
      ] as const) {
        cpSync(source, path, { recursive: true })
        await writeSafetensors(join(path, 'model.safetensors'), all)
      }
      const {
        arena,
        model: { entries },
      } = patchModel(await describeModel(small), { kind: 'none' }, cpuTarget())
      assert.ok(
        entries.filter(({ kind }) => kind === 'experts').every(({ id }) => arena.weights.get(id)!.value.storage.dtype === 'q8'),
      )
      assert.deepEqual(await logitsOf(small), await logitsOf(plain))
    })
})
