import { strict as assert } from 'node:assert'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { roundToBf16 } from '../../engine/graph/dtype.ts'
import { quant8Layout } from '../../engine/graph/quant8.ts'
import { cpuTarget } from '../../engine/graph/target.ts'
import { halfToNumber, numberToHalf } from '../../engine/io/tensorConvert.ts'
import { openTensorSource, readFloat32, readTensorBytes, requireTensor } from '../../engine/io/tensorSource.ts'
import { writeSafetensors, type TensorDeclaration } from '../../engine/io/safetensorsWriter.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import type { WeightEntry } from '../../engine/model/weightTable.ts'
import { describeModel, patchModel, type PatchedModel } from '../../engine/runtime/patchedModel.ts'
import { int8 } from '../../engine/runtime/quantisedWeights.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { mergedTensor } from '../../engine/save/merge.ts'
import { assertClose, failure, losses, makeRecipe, starter, temporaryFolder, train } from './support.ts'

/** All finite e4m3 numbers by their bits, from the format's definition. */
const e4m3 = Array.from({ length: 256 }, (_, bits) => {
  const [exponent, fraction, sign] = [(bits >> 3) & 15, bits & 7, bits > 127 ? -1 : 1]
  return (bits & 127) === 127
    ? NaN
    : sign * (exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7))
})
const positive = e4m3.slice(0, 127)

function nearestE4m3(value: number): number {
  let [low, high] = [0, 126]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((positive[middle]! + positive[middle + 1]!) / 2 < Math.abs(value)) low = middle + 1
    else high = middle
  }
  return value < 0 ? low + 128 : low
}

interface Scheme {
  readonly name: string
  readonly suffix: string
  readonly int8?: true
  readonly block: (rows: number, cols: number) => readonly [number, number]
  readonly shape: (rows: number, cols: number) => readonly number[]
}

const schemes: readonly Scheme[] = [
  { name: 'FP8, one scale', suffix: '.weight_scale', block: (rows, cols) => [rows, cols], shape: () => [1] },
  { name: 'FP8, a scale for each row', suffix: '.weight_scale', block: (_, cols) => [1, cols], shape: (rows) => [rows, 1] },
  {
    name: 'FP8, a scale for each 128 × 128',
    suffix: '.weight_scale_inv',
    block: () => [128, 128],
    shape: (rows, cols) => [Math.ceil(rows / 128), Math.ceil(cols / 128)],
  },
  { name: 'INT8 of LLM.int8', suffix: '.SCB', int8: true, block: (_, cols) => [1, cols], shape: (rows) => [rows] },
]

/** The starter with its linear layers in 8 bits, and the values that they stand for. */
async function inEightBits(folder: string, { suffix, int8, block, shape }: Scheme): Promise<Map<string, Float32Array>> {
  cpSync(starter, folder, { recursive: true })
  const tensors: (TensorDeclaration & { readonly data: Uint8Array })[] = []
  const values = new Map<string, Float32Array>()
  for (const tensor of (await openTensorSource(starter)).tensors.values()) {
    if (!tensor.name.endsWith('_proj.weight')) {
      const bytes = await readTensorBytes(tensor)
      tensors.push({ name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, data: bytes })
      continue
    }
    const source = await readFloat32(tensor)
    const [rows, cols] = tensor.shape as [number, number]
    const [blockRows, blockCols] = block(rows, cols)
    const across = Math.ceil(cols / blockCols)
    const place = (i: number) => Math.floor(i / cols / blockRows) * across + Math.floor((i % cols) / blockCols)
    const maxima = new Float32Array(across * Math.ceil(rows / blockRows))
    source.forEach((value, i) => (maxima[place(i)] = Math.max(maxima[place(i)]!, Math.abs(value))))
    const scales = int8 === true ? maxima : maxima.map((value) => value / 448)
    const codes = Uint8Array.from(source, (value, i) => {
      const scale = scales[place(i)]!
      return int8 === true ? Math.round((value / scale) * 127) & 255 : nearestE4m3(value / scale)
    })
    values.set(
      tensor.name,
      Float32Array.from(codes, (code, i) => {
        const scale = scales[place(i)]!
        return roundToBf16(
          int8 === true ? Math.fround(Math.fround(((code << 24) >> 24) * scale) / 127) : Math.fround(e4m3[code]! * scale),
        )
      }),
    )
    tensors.push({ name: tensor.name, dtype: int8 === true ? 'I8' : 'F8_E4M3', shape: tensor.shape, data: codes })
    tensors.push({
      name: tensor.name.replace('.weight', suffix),
      dtype: 'F32',
      shape: shape(rows, cols),
      data: new Uint8Array(scales.buffer),
    })
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return values
}

const isLinear = ({ kind, rows }: WeightEntry) => kind === 'linear' && rows > 1

/** Every linear layer stands in one byte a weight, and a few for its scales. */
function assertBytes({ model, arena }: PatchedModel): void {
  const linear = model.entries.filter(isLinear)
  assert.ok(linear.length > 10)
  assert.deepEqual(
    linear.filter(({ id }) => arena.weights.get(id)!.value.storage.dtype !== 'q8'),
    [],
  )
  const others = model.entries.filter((entry) => !isLinear(entry)).reduce((sum, { rows, cols }) => sum + 4 * rows * cols + 256, 0)
  const bytes = linear.reduce((sum, { rows, cols }) => sum + rows * cols + 4 * rows + 1024, 0)
  assert.ok(arena.bytes <= bytes + others, `${arena.bytes} bytes for ${bytes} of linear layers and ${others} of others`)
}

describe('checkpoints in 8 bits', () => {
  const folder = temporaryFolder()
  for (const scheme of schemes)
    it(scheme.name, async () => {
      const path = join(folder, scheme.name.replaceAll(/\W+/g, '-'))
      const expected = await inEightBits(path, scheme)
      const runtime = new Runtime({ kind: 'cpu', threads: 2 })
      try {
        const description = await describeModel(path)
        const patched = patchModel(description, { kind: 'none' }, cpuTarget())
        assertBytes(patched)
        for (const quantisation of [{ kind: 'stored' }, { kind: 'none' }] as const) {
          const model = await LoadedModel.load(
            patchModel(description, { kind: 'none' }, cpuTarget(), { quantisation }),
            runtime,
            { seed: 0 },
          )
          for (const entry of model.patched.model.entries)
            for (const piece of entry.pieces) {
              const values = expected.get(piece.name)
              if (values === undefined) continue
              const ours = new Float32Array((await mergedTensor(model, entry, piece, 'f32')).slice().buffer)
              assert.equal(
                ours.findIndex((value, i) => value !== values[i]),
                -1,
                `${piece.name}, ${quantisation.kind}`,
              )
            }
        }
      } finally {
        runtime.dispose()
      }
    })

  it('with a number that is NaN are refused by name', async () => {
    const path = join(folder, 'nan')
    await inEightBits(path, schemes[1]!)
    const source = await openTensorSource(path)
    const { name, offset, path: file } = [...source.tensors.values()].find(({ dtype }) => dtype === 'F8_E4M3')!
    const bytes = readFileSync(file)
    bytes[offset + 5] = 0xff
    writeFileSync(file, bytes)
    const runtime = new Runtime({ kind: 'cpu', threads: 1 })
    const loading = LoadedModel.load(patchModel(await describeModel(path), { kind: 'none' }, cpuTarget()), runtime, { seed: 0 })
    await assert.rejects(loading, failure('MODEL_INVALID', new RegExp(`${name} holds 1 values that are NaN`)))
    runtime.dispose()
  })

  it('with a scale that is NaN, or in an order for one kind of GPU, are refused by name', async () => {
    const path = join(folder, 'format')
    await inEightBits(path, schemes[3]!)
    const file = join(path, 'model.safetensors')
    const tensors: (TensorDeclaration & { readonly data: Uint8Array })[] = []
    for (const tensor of (await openTensorSource(path)).tensors.values())
      tensors.push({ name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, data: await readTensorBytes(tensor) })
    const { name } = tensors.find(({ dtype }) => dtype === 'I8')!
    const format = (value: number) =>
      writeSafetensors(file, [
        ...tensors,
        { name: name.replace(/weight$/, 'weight_format'), dtype: 'U8', shape: [], data: Uint8Array.of(value) },
      ])
    await format(0)
    await describeModel(path)
    await format(2)
    await assert.rejects(
      describeModel(path),
      failure('MODEL_UNSUPPORTED', new RegExp(`${name}" has weight_format 2 \\(col_turing\\)`)),
    )
    await writeSafetensors(
      file,
      tensors.map((tensor) =>
        tensor.name.endsWith('up_proj.SCB') ? { ...tensor, data: tensor.data.slice().fill(0xff, 4, 8) } : tensor,
      ),
    )
    await assert.rejects(describeModel(path), failure('MODEL_INVALID', /up_proj\.SCB" holds NaN at 1/))
  })

  it('without scales are refused by name', async () => {
    const path = join(folder, 'lost')
    await inEightBits(path, { ...schemes[1]!, suffix: '.lost' })
    await assert.rejects(
      describeModel(path),
      (error) => UnslothError.is(error, 'MODEL_INVALID') && /is F8_E4M3, but .*weight_scale is missing/.test(error.message),
    )
  })

  it('with scales of another shape are refused', async () => {
    const path = join(folder, 'other')
    await inEightBits(path, { ...schemes[1]!, shape: (rows) => [rows / 2, 2] })
    await assert.rejects(
      describeModel(path),
      (error) => UnslothError.is(error, 'MODEL_UNSUPPORTED') && error.message.includes('which does not fit'),
    )
  })
})

/** A row as LLM.int8 quantises it: in fp16, times 127 over its maximum, to the nearest whole number. */
function llmInt8(row: Float32Array): { numbers: Int8Array; absmax: number } {
  const halves = row.map((value) => halfToNumber(numberToHalf(value)))
  const absmax = halves.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
  const factor = Math.fround(127 / absmax)
  const nearest = (value: number) => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value))
  return { numbers: Int8Array.from(halves, (value) => nearest(Math.fround(value * factor))), absmax }
}

describe('load_in_8bit', () => {
  const folder = temporaryFolder()

  it('keeps rows of int8 with their maxima, as LLM.int8 makes them', async () => {
    const runtime = new Runtime({ kind: 'cpu', threads: 2 })
    try {
      const model = await LoadedModel.load(
        patchModel(await describeModel(starter), { kind: 'none' }, cpuTarget(), { quantisation: int8 }),
        runtime,
        { seed: 0 },
      )
      assertBytes(model.patched)
      for (const entry of model.patched.model.entries.filter(isLinear)) {
        const { offset } = model.patched.arena.weights.get(entry.id)!.value.storage
        const layout = quant8Layout(entry.rows, entry.cols, { blockRows: 1, blockCols: entry.cols })
        for (const { name, row, rows } of entry.pieces) {
          const source = await readFloat32(requireTensor(model.patched.model.source, name))
          const numbers = new Int8Array(runtime.read('weights', offset + layout.numbers + row * entry.cols, rows * entry.cols))
          const scales = runtime.readFloats('weights', offset + layout.scales + 4 * row, rows)
          for (let i = 0; i < rows; ++i) {
            const expected = llmInt8(source.subarray(i * entry.cols, (i + 1) * entry.cols))
            assert.equal(scales[i], expected.absmax, name)
            assert.deepEqual(numbers.subarray(i * entry.cols, (i + 1) * entry.cols), expected.numbers, `${name}, row ${i}`)
          }
        }
      }
    } finally {
      runtime.dispose()
    }
  })

  it('trains adapters, and merges into a 16-bit model that answers as the trained one', async () => {
    const run = await train(
      makeRecipe(folder, { training: { load_in_8bit: true, max_steps: 12 }, save: { method: ['lora', 'merged_16bit'] } }),
    )
    const steps = losses(run)
    assert.ok(
      steps.slice(6).reduce((sum, loss) => sum + loss, 0) < steps.slice(0, 6).reduce((sum, loss) => sum + loss, 0),
      steps.join(),
    )
    assertClose(
      steps,
      losses(await train(makeRecipe(join(folder, 'wide'), { training: { max_steps: 12 } }))),
      1e-2,
      'losses beside those of the 16-bit model',
    )
    const types = new Set([...(await openTensorSource(join(run, 'merged'))).tensors.values()].map(({ dtype }) => dtype))
    assert.deepEqual([...types], ['BF16'])
  })

  it('leaves a checkpoint in 4 bits as it is, and says so', async () => {
    const run = await train(
      makeRecipe(join(folder, 'four'), { training: { load_in_4bit: true, max_steps: 1 }, save: { method: ['merged_4bit'] } }),
    )
    const { arena } = patchModel(await describeModel(join(run, 'merged-4bit')), { kind: 'none' }, cpuTarget(), {
      quantisation: int8,
    })
    assert.deepEqual(arena.notes, ['The checkpoint is stored in 4 bits and stays so: load_in_8bit has no effect.'])
    assert.ok([...arena.weights.values()].every(({ value }) => value.storage.dtype !== 'q8'))
  })

  it('is refused with full fine-tuning, and with pissa', async () => {
    const refused = (sections: Parameters<typeof makeRecipe>[1], message: RegExp) =>
      assert.throws(() => makeRecipe(folder, sections), failure('RECIPE', message))
    refused({ training: { load_in_8bit: true, training_type: 'full' } }, /needs load_in_8bit: false/)
    refused({ training: { load_in_8bit: true }, lora: { init_lora_weights: 'pissa' } }, /use load_in_8bit: false/)
    await assert.rejects(
      async () => patchModel(await describeModel(starter), { kind: 'full' }, cpuTarget(), { quantisation: int8 }),
      failure('RECIPE', /quantised weights cannot be trained in full/, /load_in_8bit: false/),
    )
  })
})
