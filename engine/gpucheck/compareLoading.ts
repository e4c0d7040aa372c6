import { rm, writeFile, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describeError } from '#shared/errors.ts'
import { normals } from '../bench/madeUpNumbers.ts'
import { dtypeCode } from '../graph/dtype.ts'
import { quant8Layout } from '../graph/quant8.ts'
import { nestedShift, quant4Layout } from '../graph/quant4.ts'
import { numberToBfloat16, numberToHalf } from '../io/tensorConvert.ts'
import type { QuantisedLoad } from '../runtime/weightArena.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { OpResult } from './compareOps.ts'

interface LoadCase {
  readonly label: string
  readonly source: 'f32' | 'bf16' | 'f16'
  readonly elements: number
  readonly bytes: number
  readonly load: QuantisedLoad
}

const encoders = {
  f32: (values: Float32Array) => values,
  bf16: (values: Float32Array) => Uint16Array.from(values, numberToBfloat16),
  f16: (values: Float32Array) => Uint16Array.from(values, numberToHalf),
}

function cases(): LoadCase[] {
  const sources = ['bf16', 'f16', 'f32'] as const
  const blocks = (elements: number, source: LoadCase['source'], nested: boolean, fp4: boolean): LoadCase => {
    const layout = quant4Layout(nested ? 'q4n' : 'q4', elements)
    return {
      label: `${fp4 ? 'FP4' : 'NF4'}${nested ? ', nested' : ''} from ${elements} ${source}`,
      source,
      elements,
      bytes: layout.bytes,
      load: {
        kind: 'pack',
        fp4,
        nested,
        groupShift: nestedShift,
        codesAt: layout.codes,
        absmaxAt: layout.absmax,
        nestedAt: layout.nested,
      },
    }
  }
  const rows = (count: number, cols: number, source: LoadCase['source']): LoadCase => {
    const layout = quant8Layout(count, cols, { blockRows: 1, blockCols: cols })
    return {
      label: `int8 rows from ${count}x${cols} ${source}`,
      source,
      elements: count * cols,
      bytes: layout.bytes,
      load: { kind: 'packRows', cols, numbersAt: layout.numbers, scalesAt: layout.scales },
    }
  }
  // Whole and broken blocks, few maxima and many; the last of each come in more than one piece.
  const small = sources.flatMap((source) =>
    [64 * 100, 64 * 1000 + 37].flatMap((elements) =>
      [false, true].flatMap((nested) => [false, true].map((fp4) => blocks(elements, source, nested, fp4))),
    ),
  )
  return [
    ...small,
    blocks(64 * 70_000, 'bf16', true, false),
    ...sources.flatMap((source) => [rows(300, 896, source), rows(33, 37, source)]),
    rows(1100, 4096, 'bf16'),
  ]
}

async function loaded(runtime: Runtime, path: string, { source, elements, bytes, load }: LoadCase): Promise<Uint8Array> {
  runtime.release('weights')
  runtime.reserve('weights', bytes)
  const bad = await runtime.loadQuantised('weights', {
    path,
    fileOffset: 0,
    elements,
    source: dtypeCode(source),
    target: dtypeCode('u8'),
    offset: 0,
    ...load,
  })
  if (bad > 0) throw new Error(`${bad} numbers were taken for NaN`)
  return new Uint8Array(runtime.read('weights', 0, bytes))
}

/** Tensors that are quantised while they are read: a GPU makes the processor's bytes. */
export async function compareLoading(cpu: Runtime, gpu: Runtime): Promise<OpResult[]> {
  const folder = await mkdtemp(join(tmpdir(), 'unsloth-check-'))
  const random = normals(7)
  const pool = Float32Array.from({ length: 65_537 }, () => 0.02 * random.next().value)
  const results: OpResult[] = []
  try {
    for (const one of cases()) {
      const base = { command: 'load', label: one.label, numbers: one.source, allowed: 0 } as const
      try {
        const path = join(folder, 'tensor')
        // A block of zeros, and numbers that fp16 holds as subnormal ones.
        const values = Float32Array.from({ length: one.elements }, (_, i) =>
          i < 128 ? 0 : i < 256 ? 1e-6 * pool[i]! : pool[(i * 7919) % pool.length]!,
        )
        await writeFile(path, encoders[one.source](values))
        const [expected, got] = [await loaded(cpu, path, one), await loaded(gpu, path, one)]
        const error = expected.reduce((count, byte, i) => count + (byte === got[i] ? 0 : 1), 0) / expected.length
        results.push({ ...base, error, passed: error === 0 })
      } catch (error) {
        results.push({ ...base, error: NaN, passed: false, message: describeError(error) })
      }
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  return results
}
