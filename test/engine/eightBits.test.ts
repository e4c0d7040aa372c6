import { strict as assert } from 'node:assert'
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { roundToBf16 } from '../../engine/graph/dtype.ts'
import { cpuTarget } from '../../engine/graph/target.ts'
import { openTensorSource, readFloat32, readTensorBytes } from '../../engine/io/tensorSource.ts'
import { writeSafetensors, type TensorDeclaration } from '../../engine/io/safetensorsWriter.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { mergedTensor } from '../../engine/save/merge.ts'
import { starter, temporaryFolder } from './support.ts'

/** All finite e4m3 numbers by their bits, from the format's definition. */
const e4m3 = Array.from({ length: 256 }, (_, bits) => {
  const [exponent, fraction, sign] = [(bits >> 3) & 15, bits & 7, bits > 127 ? -1 : 1]
  return (bits & 127) === 127 ? NaN : sign * (exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7))
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
  { name: 'FP8, a scale for each 128 × 128', suffix: '.weight_scale_inv', block: () => [128, 128], shape: (rows, cols) => [Math.ceil(rows / 128), Math.ceil(cols / 128)] },
  { name: 'INT8 of LLM.int8', suffix: '.SCB', int8: true, block: (_, cols) => [1, cols], shape: (rows) => [rows] },
]

/** The starter with its linear layers in 8 bits, and the values that they stand for. */
async function inEightBits(folder: string, { suffix, int8, block, shape }: Scheme): Promise<Map<string, Float32Array>> {
  cpSync(starter, folder, { recursive: true })
  const tensors: (TensorDeclaration & { readonly data: Uint8Array })[] = []
  const values = new Map<string, Float32Array>()
  for (const tensor of (await openTensorSource(starter)).tensors.values()) {
    if (!tensor.name.endsWith("_proj.weight")) {
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
    values.set(tensor.name, Float32Array.from(codes, (code, i) => {
      const scale = scales[place(i)]!
      return roundToBf16(int8 === true ? Math.fround(Math.fround(((code << 24) >> 24) * scale) / 127) : Math.fround(e4m3[code]! * scale))
    }))
    tensors.push({ name: tensor.name, dtype: int8 === true ? 'I8' : 'F8_E4M3', shape: tensor.shape, data: codes })
    tensors.push({ name: tensor.name.replace('.weight', suffix), dtype: 'F32', shape: shape(rows, cols), data: new Uint8Array(scales.buffer) })
  }
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return values
}

describe('checkpoints in 8 bits', () => {
  const folder = temporaryFolder()
  for (const scheme of schemes)
    it(scheme.name, async () => {
      const path = join(folder, scheme.name.replaceAll(/\W+/g, '-'))
      const expected = await inEightBits(path, scheme)
      const runtime = new Runtime({ kind: 'cpu', threads: 2 })
      try {
        const model = await LoadedModel.load(patchModel(await describeModel(path), { kind: 'none' }, cpuTarget()), runtime, { seed: 0 })
        for (const entry of model.patched.model.entries)
          for (const piece of entry.pieces) {
            const values = expected.get(piece.name)
            if (values === undefined) continue
            const ours = new Float32Array((await mergedTensor(model, entry, piece, 'f32')).slice().buffer)
            assert.equal(ours.findIndex((value, i) => value !== values[i]), -1, piece.name)
          }
      } finally {
        runtime.dispose()
      }
    })

  it('without scales are refused by name', async () => {
    const path = join(folder, 'lost')
    await inEightBits(path, { ...schemes[1]!, suffix: '.lost' })
    await assert.rejects(describeModel(path), (error) => UnslothError.is(error, 'MODEL_INVALID') && /is F8_E4M3, but .*weight_scale is missing/.test(error.message))
  })

  it('with scales of another shape are refused', async () => {
    const path = join(folder, 'other')
    await inEightBits(path, { ...schemes[1]!, shape: (rows) => [rows / 2, 2] })
    await assert.rejects(describeModel(path), (error) => UnslothError.is(error, 'MODEL_UNSUPPORTED') && error.message.includes('which does not fit'))
  })
})
