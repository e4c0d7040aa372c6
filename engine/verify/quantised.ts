import { join } from 'node:path'
import { dtypeCode } from '../graph/dtype.ts'
import { whole, type Arena, type Storage, type Tensor } from '../graph/graph.ts'
import { planMemory } from '../graph/plan.ts'
import { dynamicMap, nf4Code, quant4Header, quant4Layout } from '../graph/quant4.ts'
import { cpuTarget } from '../graph/target.ts'
import { quantisedTensors } from '../io/bitsandbytes.ts'
import { openTensorSource, readTensorBytes, requireTensor } from '../io/tensorSource.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { describeModel, patchModel } from '../runtime/patchedModel.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import { quantisedTensorBytes } from '../save/quantise.ts'
import { mergedTensor } from '../save/merge.ts'
import type { Comparison } from './compare.ts'
import type { Golden, Quantity } from './golden.ts'

type SetQuantity = (name: string, data: Quantity['data'], shape: readonly number[]) => void

const fixed = (name: string, arena: Arena, offset: number, dtype: Storage['dtype'], rows: number, cols: number): Tensor =>
  whole({ name, arena, offset, dtype, rows, cols, rule: 'fixed', keep: 'residual', layer: -1 })

/** NF4 of one matrix with maxima in 8 bits: codes, maxima and the values that come back. */
export async function nf4Quantities(golden: Golden, device: DeviceChoice, set: SetQuantity): Promise<void> {
  if (!golden.has('nf4_input')) return
  const tensor = requireTensor(await openTensorSource(join(golden.folder, 'golden.safetensors')), 'nf4_input')
  const elements = tensor.shape.reduce((product, size) => product * size, 1)
  const layout = quant4Layout('q4n', elements)
  const runtime = new Runtime(device)
  try {
    runtime.reserve('weights', layout.bytes)
    runtime.write('weights', 0, quant4Header(nf4Code, dynamicMap(true), 8, dtypeCode('bf16')))
    await runtime.loadQuantised('weights', {
      kind: 'pack',
      path: tensor.path,
      fileOffset: tensor.offset,
      elements,
      source: dtypeCode('bf16'),
      target: dtypeCode('q4n'),
      offset: 0,
      fp4: false,
      nested: true,
      groupShift: 8,
      codesAt: layout.codes,
      absmaxAt: layout.absmax,
      nestedAt: layout.nested,
    })
    const y = fixed('dequantised', 'activations', -1, 'f32', 1, elements)
    const plan = planMemory([
      { name: 'dequantise', tensors: [y, fixed('matrix', 'weights', 0, 'q4n', 1, elements)], ints: [0], floats: [] },
    ])
    await runtime.compile(plan).run()
    const [blocks, packed] = [elements / 64, elements / 2]
    const nested = runtime.readFloats('weights', layout.nested, 2)
    set('nf4_packed', Int32Array.from(new Uint8Array(runtime.read('weights', layout.codes, packed))), [packed, 1])
    set('nf4_absmax_u8', Int32Array.from(new Uint8Array(runtime.read('weights', layout.absmax, blocks))), [blocks])
    set('nf4_nested_absmax', nested.slice(0, 1), [1])
    set('nf4_absmax_offset', nested.slice(1), [1])
    set('nf4_code', nf4Code, [16])
    set('nf4_nested_code', dynamicMap(true), [256])
    set('nf4_dequant', runtime.readFloats('activations', plan.offsets.get(y.storage)!, elements), [elements])
  } finally {
    runtime.dispose()
  }
}

/** Settings of the reference's 8-bit AdamW; five steps on given gradients. */
const adam8 = { rate: 0.01, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 } as const

/** Parameters after some steps of AdamW with 8-bit moments. */
export async function adam8Quantities(golden: Golden, device: DeviceChoice, set: SetQuantity): Promise<void> {
  if (!golden.has('adam8_grads')) return
  const [steps, count] = golden.shape('adam8_grads') as [number, number]
  const grads = await golden.floats('adam8_grads')
  const blocks = Math.ceil(count / 256)
  const runtime = new Runtime(device)
  try {
    runtime.reserve('params', count * 4)
    runtime.reserve('grads', count * 4)
    runtime.reserve('moment1', 2 * (count + blocks * 4))
    runtime.reserve('scalars', 256)
    runtime.write('params', 0, await golden.floats('adam8_param0'))
    const state = (index: number) => index * (count + blocks * 4)
    const plan = runtime.compile(
      planMemory([
        {
          name: 'adamw8',
          ints: [0],
          floats: [...adam8.betas, adam8.eps, adam8.weightDecay],
          tensors: [
            fixed('p', 'params', 0, 'f32', 1, count),
            fixed('m', 'moment1', state(0), 'u8', 1, count),
            fixed('v', 'moment1', state(1), 'u8', 1, count),
            fixed('absmaxM', 'moment1', state(0) + count, 'f32', 1, blocks),
            fixed('absmaxV', 'moment1', state(1) + count, 'f32', 1, blocks),
            fixed('grad', 'grads', 0, 'f32', 1, count),
            fixed('scalars', 'scalars', 0, 'f64', 1, 4),
          ],
        },
      ]),
    )
    for (let step = 1; step <= steps; ++step) {
      runtime.write('grads', 0, grads.subarray((step - 1) * count, step * count))
      runtime.write('scalars', 0, Float64Array.of(1, 1 - adam8.betas[0] ** step, 1 - adam8.betas[1] ** step, adam8.rate))
      await plan.run()
    }
    set(`adam8_param${steps}`, runtime.readFloats('params', 0, count), [count])
  } finally {
    runtime.dispose()
  }
}

/** The dynamic maps, and a vector in blocks of 256 of the signed one. */
export async function dynamicQuantities(golden: Golden, set: SetQuantity): Promise<void> {
  if (!golden.has('q8_input')) return
  const x = await golden.floats('q8_input')
  const map = dynamicMap(true)
  const absmax = Float32Array.from({ length: x.length / 256 }, (_, block) =>
    x.subarray(block * 256, block * 256 + 256).reduce((most, value) => Math.max(most, Math.abs(value)), 0),
  )
  const codes = Int32Array.from(x, (value, i) => {
    const scaled = Math.fround(value * Math.fround(1 / absmax[i >> 8]!))
    const above = map.findIndex((entry) => entry >= scaled)
    if (above <= 0) return above < 0 ? 255 : 0
    return scaled > Math.fround(Math.fround(map[above]! + map[above - 1]!) * 0.5) ? above : above - 1
  })
  set('q8_code_signed', map, [256])
  set('q8_code_unsigned', dynamicMap(false), [256])
  set('q8_absmax', absmax, [absmax.length])
  set('q8_codes', codes, [codes.length])
}

/** Values of the quantised matrices that the golden holds under `dequant.<module>`. */
export async function dequantQuantities(golden: Golden, model: LoadedModel, set: SetQuantity): Promise<void> {
  for (const entry of model.patched.model.entries)
    for (const piece of entry.pieces) {
      const name = `dequant.${piece.name.replace(/\.weight$/, '')}`
      if (!golden.has(name)) continue
      const bytes = await mergedTensor(model, entry, piece, 'f32')
      set(name, new Float32Array(bytes.slice().buffer), [piece.rows, entry.cols])
    }
}

/** Every tensor of the reference's 4-bit checkpoint beside what we make of the same model in 16 bits: bytes that differ. */
export async function compareQuantised(golden: Golden, threads: number): Promise<Comparison[]> {
  const { modelFolder, folder } = golden
  if (modelFolder === folder) return []
  const stored = await openTensorSource(modelFolder)
  const [some] = quantisedTensors(stored).values()
  if (some === undefined) return []
  const runtime = new Runtime({ kind: 'cpu', threads })
  try {
    const quantisation = { kind: 'load', type: some.type, nested: some.nested !== undefined } as const
    const patched = patchModel(await describeModel(join(folder, 'bf16')), { kind: 'none' }, cpuTarget(), { quantisation })
    const model = await LoadedModel.load(patched, runtime, { seed: 0 })
    const results: Comparison[] = []
    for (const entry of patched.model.entries)
      for (const piece of entry.pieces)
        for (const { name, bytes } of quantisedTensorBytes(model, entry, piece)) {
          const reference = await readTensorBytes(requireTensor(stored, name))
          const error =
            reference.length === bytes.length
              ? reference.reduce((count, value, i) => count + (value === bytes[i] ? 0 : 1), 0)
              : Infinity
          results.push({ name: `bnb-4bit.${name}`, verdict: error === 0 ? 'ok' : 'wrong', error, tolerance: 0 })
        }
    return results
  } finally {
    runtime.dispose()
  }
}
