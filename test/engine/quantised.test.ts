import { strict as assert } from 'node:assert'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { dtypeCode } from '../../engine/graph/dtype.ts'
import { whole, type Storage, type Tensor } from '../../engine/graph/graph.ts'
import { planMemory } from '../../engine/graph/plan.ts'
import { quant8Header, quant8Layout } from '../../engine/graph/quant8.ts'
import { quant4Header, quant4Layout } from '../../engine/graph/quant4.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { compare } from '../../engine/verify/compare.ts'
import { CaseComputation } from '../../engine/verify/compute.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { compareQuantised } from '../../engine/verify/quantised.ts'
import { largeFile } from './support.ts'

const slices = join(projectRoot(), 'test', 'fixtures', 'quantisation', 'bnb')
const bf16 = (bytes: Uint8Array): Float32Array =>
  Float32Array.from(new Uint16Array(bytes.slice().buffer), (half) => new Float32Array(Uint32Array.of(half << 16).buffer)[0]!)
const floats = (bytes: Uint8Array): Float32Array => new Float32Array(bytes.slice().buffer)

/** The parts of a slice, in order, and its header. */
function readSlice(
  name: string,
  words: number,
  parts: number,
  tail = 0,
): { path: string; header: Uint32Array; parts: { at: number; bytes: Uint8Array }[]; tail: Float32Array } {
  const path = join(slices, name)
  const file = new Uint8Array(readFileSync(path))
  const header = new Uint32Array(file.slice(0, words * 4).buffer)
  let at = words * 4 + tail * 4
  const lengths = header.slice(words - parts)
  return {
    path,
    header,
    tail: floats(file.slice(words * 4, words * 4 + tail * 4)),
    parts: [...lengths].map((length) => {
      at += length
      return { at: at - length, bytes: file.slice(at - length, at) }
    }),
  }
}

const fixed = (storage: Pick<Storage, 'name' | 'arena' | 'offset' | 'dtype' | 'rows' | 'cols'>): Tensor =>
  whole({ ...storage, rule: 'fixed', keep: 'residual', layer: -1 })

async function withRuntime<T>(use: (runtime: Runtime) => Promise<T>): Promise<T> {
  const runtime = new Runtime({ kind: 'cpu', threads: 2 })
  try {
    return await use(runtime)
  } finally {
    runtime.dispose()
  }
}

/** Signs of zero aside. */
const same = (a: Float32Array, b: Float32Array): number => a.findIndex((value, i) => value !== b[i])

describe('slices of real models that bitsandbytes has quantised', () => {
  const names = readdirSync(slices)
    .filter((name) => !name.includes('int8'))
    .sort()
  it('are all here', () => assert.equal(names.length, 6))

  for (const name of names)
    it(`${name} has the values that the library gives`, () =>
      withRuntime(async (runtime) => {
        const {
          header,
          parts: [packed, absmax, map, nestedAbsmax, nestedMap, expected],
          tail: [offset],
        } = readSlice(name, 9, 6, 1)
        const [format, elements, blockSize] = header as unknown as [number, number, number]
        assert.equal(blockSize, 64)
        const dtype = format === 2 ? 'q4n' : 'q4'
        const layout = quant4Layout(dtype, elements)
        runtime.reserve('weights', layout.bytes)
        runtime.write(
          'weights',
          0,
          quant4Header(floats(map!.bytes), format === 2 ? floats(nestedMap!.bytes) : undefined, 8, dtypeCode('bf16')),
        )
        runtime.write('weights', layout.codes, packed!.bytes)
        runtime.write('weights', layout.absmax, absmax!.bytes)
        if (format === 2)
          runtime.write(
            'weights',
            layout.nested,
            Float32Array.from([...floats(nestedAbsmax!.bytes)].flatMap((scale) => [scale, offset!])),
          )
        const matrix = fixed({ name: 'matrix', arena: 'weights', offset: 0, dtype, rows: 4, cols: elements / 4 })
        const y = fixed({ name: 'y', arena: 'activations', offset: -1, dtype: 'f32', rows: 3, cols: elements / 4 })
        const plan = planMemory([{ name: 'dequantise', tensors: [y, matrix], ints: [1], floats: [] }])
        await runtime.compile(plan).run()
        const values = runtime.readFloats('activations', plan.offsets.get(y.storage)!, (3 * elements) / 4)
        assert.equal(same(values, bf16(expected!.bytes).subarray(elements / 4)), -1)
      }))

  it('INT8: rows times their maximum, over 127', () =>
    withRuntime(async (runtime) => {
      const {
        path,
        header,
        parts: [weight, scales, expected],
      } = readSlice('llama_1b_int8.bin', 6, 3)
      const [, rows, cols] = header as unknown as [number, number, number]
      runtime.reserve('weights', rows * cols * 4)
      const bad = await runtime.loadQuantised('weights', {
        kind: 'scaled',
        path,
        fileOffset: weight!.at,
        elements: rows * cols,
        source: dtypeCode('u8'),
        target: dtypeCode('f32'),
        offset: 0,
        fp8: false,
        cols,
        blockRows: 1,
        blockCols: cols,
        divisor: 127,
        scales: floats(scales!.bytes),
      })
      assert.equal(bad, 0)
      assert.equal(same(runtime.readFloats('weights', 0, rows * cols), bf16(expected!.bytes)), -1)

      const scaling = { numbers: 'int8', rounding: dtypeCode('bf16'), blockRows: 1, blockCols: cols, divisor: 127 } as const
      const layout = quant8Layout(rows, cols, scaling)
      runtime.reserve('weights', layout.bytes)
      runtime.write('weights', 0, quant8Header(scaling))
      runtime.write('weights', layout.numbers, weight!.bytes)
      runtime.write('weights', layout.scales, scales!.bytes)
      const y = fixed({ name: 'y', arena: 'activations', offset: -1, dtype: 'f32', rows, cols })
      const plan = planMemory([
        {
          name: 'dequantise',
          tensors: [y, fixed({ name: 'matrix', arena: 'weights', offset: 0, dtype: 'q8', rows, cols })],
          ints: [0],
          floats: [],
        },
      ])
      await runtime.compile(plan).run()
      assert.equal(
        same(runtime.readFloats('activations', plan.offsets.get(y.storage)!, rows * cols), bf16(expected!.bytes)),
        -1,
        'kept in 8 bits',
      )
    }))
})

describe('models that bitsandbytes has quantised', () => {
  for (const name of ['llama-nf4', 'llama-nf4-double-quant'])
    it(`${name}: codes, maxima, values, logits, gradients and 8-bit AdamW`, async () => {
      const folder = largeFile('golden', name)
      if (folder === undefined) return
      const golden = await Golden.open(folder)
      const computation = new CaseComputation(golden, { device: { kind: 'cpu', threads: 2 }, compute: 'float32' })
      await computation.run()
      const results = [...(await compare(golden, computation.quantities, new Set())), ...(await compareQuantised(golden, 2))]
      assert.ok(results.length > 80, `only ${results.length} quantities`)
      assert.deepEqual(
        results.filter(({ verdict }) => verdict !== 'ok').map(({ name: quantity, error }) => `${quantity}: ${error}`),
        [],
      )
    })
})
