import { strict as assert } from 'node:assert'
import { UnslothError } from '#shared/errors.ts'
import { compareLoading } from '../../engine/gpucheck/compareLoading.ts'
import { opTable } from '../../engine/gpucheck/opTable.ts'
import { runOp } from '../../engine/gpucheck/runOp.ts'
import { commandNames } from '../../engine/graph/commands.ts'
import { paddedCapacity } from '../../engine/graph/padding.ts'
import { cpuTarget, cudaTarget } from '../../engine/graph/target.ts'
import { native } from '../../engine/native.ts'
import { chooseDevice, targetOf, usableGpus } from '../../engine/runtime/chooseDevice.ts'
import { padStep } from '../../engine/runtime/padStep.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { packMicroSteps } from '../../engine/train/batches.ts'
import { failure } from '../unit/io/support.ts'
import { decidable } from '../../engine/verify/sixteenBits.ts'

const sample = (key: number, tokens: number) => {
  const ids = Int32Array.from({ length: tokens }, (_, i) => key * 100 + i + 1)
  return { ids, labels: ids, key }
}

describe('devices', () => {
  it('are named by settings; an unknown one is refused', () => {
    assert.deepEqual(chooseDevice('cpu', 3), { kind: 'cpu', threads: 3 })
    assert.throws(
      () => chooseDevice('tpu'),
      (error) => UnslothError.is(error, 'USAGE') && error.message.includes('no device "tpu"'),
    )
    assert.throws(
      () => chooseDevice('cuda:99'),
      (error) => UnslothError.is(error, 'GPU'),
    )
  })

  it('are GPUs by number; one that is not there is refused with those that are', () => {
    const gpu = (index: number, name: string) => ({ index, name, capability: 90, multiprocessors: 132, totalBytes: 2 ** 37 })
    const two = () => ({ gpus: [gpu(0, 'A100'), gpu(2, 'H200')], problem: '' })
    assert.deepEqual(
      ['auto', 'cuda', 'cuda:0', 'cuda:2'].map((name) => chooseDevice(name, 0, two)),
      [0, 0, 0, 2].map((index) => ({ kind: 'cuda', index })),
    )
    assert.throws(
      () => chooseDevice('cuda:1', 0, two),
      (error) =>
        UnslothError.is(error, 'GPU') &&
        error.message.includes('number 1') &&
        error.hint!.includes('cuda:0 (A100), cuda:2 (H200)'),
    )
    assert.throws(
      () => chooseDevice('cuda:N', 0, two),
      (error) => UnslothError.is(error, 'USAGE'),
    )
  })

  it('without a usable GPU say why in one sentence, and auto takes the processor', () => {
    const { gpus, problem } = usableGpus()
    if (gpus.length > 0) {
      assert.deepEqual(chooseDevice('auto'), { kind: 'cuda', index: gpus[0]!.index })
      return
    }
    assert.match(problem, /^[A-Z][^\n]*\.$/)
    assert.equal(chooseDevice('auto').kind, 'cpu')
    assert.throws(
      () => chooseDevice('cuda'),
      (error) => UnslothError.is(error, 'GPU') && error.message === problem && error.hint !== undefined,
    )
    assert.throws(
      () => new Runtime({ kind: 'cuda', index: 0 }),
      (error) => UnslothError.is(error, 'GPU'),
    )
    assert.equal(native().gpuStatus(0), undefined)
  })

  it('take memory of the system too, zero-filled, which moves only when the place changes', () => {
    const runtime = new Runtime({ kind: 'cpu', threads: 1 })
    try {
      runtime.reserve('params', 64, 'host')
      assert.deepEqual([...runtime.readFloats('params', 0, 16)], new Array(16).fill(0))
      runtime.write('params', 0, Float32Array.of(1, 2, 3))
      runtime.reserve('params', 32, 'host')
      assert.deepEqual([...runtime.readFloats('params', 0, 3)], [1, 2, 3])
      runtime.reserve('params', 32)
      assert.deepEqual([...runtime.readFloats('params', 0, 3)], [0, 0, 0])
    } finally {
      runtime.dispose()
    }
    const device = new (native().Device)('cpu', 1)
    assert.throws(() => device.alloc(64, 'disk' as 'host'), /no place "disk"/)
    assert.throws(
      () => device.alloc(2 ** 50, 'host'),
      (error) => (error as { code?: string }).code === 'MEMORY',
    )
    device.dispose()
  })

  it('have number formats of their own; float16 is for GPUs', () => {
    assert.deepEqual(targetOf({ kind: 'cpu', threads: 1 }, 'auto'), cpuTarget())
    assert.equal(cudaTarget().activation, 'bf16')
    assert.equal(cudaTarget('float32').weights, undefined)
    for (const compute of ['float16', 'tfloat32'] as const)
      assert.throws(() => targetOf({ kind: 'cpu', threads: 1 }, compute), failure('RECIPE', /is for GPUs/))
    const old = () => ({
      gpus: [{ index: 0, name: 'T4', capability: 75, multiprocessors: 40, totalBytes: 2 ** 34 }],
      problem: '',
    })
    assert.deepEqual(targetOf({ kind: 'cuda', index: 0 }, 'auto', old), cudaTarget('float16'))
    assert.throws(
      () => targetOf({ kind: 'cuda', index: 0 }, 'tfloat32', old),
      failure('RECIPE', /from Ampere.*cuda:0 has 7\.5/, /float16/),
    )
    assert.deepEqual({ ...cudaTarget('tfloat32'), precision: 0 }, cudaTarget('float32'))
  })
})

describe('padding of a micro-step', () => {
  const batch = packMicroSteps([sample(1, 5), sample(2, 3)], [16])[0]!

  it('adds a sequence of token 0, rows without a label, and nothing else', () => {
    const padded = padStep(batch, 16)
    assert.deepEqual([...padded.ids], [...batch.ids, ...new Array<number>(8).fill(0)])
    assert.deepEqual([...padded.positions.subarray(8)], [0, 1, 2, 3, 4, 5, 6, 7])
    assert.deepEqual([...padded.qStart].slice(0, 5), [0, 5, 8, 16, 16])
    assert.deepEqual([...padded.kvLength].slice(0, 4), [5, 3, 8, 0])
    assert.equal(padded.kvLength.length, 16)
    assert.deepEqual([...padded.labelIndex.subarray(6)], new Array(10).fill(-1))
    assert.ok(padded.weights!.subarray(6).every((weight) => weight === 0))
  })

  it('fits the capacity that plans are built for', () => {
    const capacity = paddedCapacity({ tokens: 8, labelled: 6, sequences: 2 }, 16)
    assert.deepEqual(capacity, { tokens: 16, labelled: 16, sequences: 16 })
    assert.equal(padStep(batch, 16).ids.length, capacity.tokens)
    assert.equal(padStep(batch, 1), batch)
  })
})

describe('the table that a GPU is checked by', () => {
  it('runs on the processor and leaves no output unwritten', async () => {
    const runtime = new Runtime({ kind: 'cpu', threads: 2 })
    try {
      for (const op of opTable()) {
        const outputs = await runOp({ runtime, activation: 'f32' }, op, 'bf16')
        for (const output of outputs)
          assert.ok(output.every(Number.isFinite) && output.some((value) => value !== 77), `${op.command} (${op.label})`)
      }
    } finally {
      runtime.dispose()
    }
  })

  it('quantises what is loaded to the same bytes with any number of threads', async () => {
    const [one, two] = [new Runtime({ kind: 'cpu', threads: 1 }), new Runtime({ kind: 'cpu', threads: 2 })]
    try {
      const results = await compareLoading(one, two)
      assert.ok(results.length > 30)
      assert.deepEqual(
        results.filter(({ passed }) => !passed),
        [],
      )
    } finally {
      one.dispose()
      two.dispose()
    }
  })

  it('has nearly every command', () => {
    const covered = new Set(opTable().map(({ command }) => command))
    const elsewhere = ['routeGrad', 'balanceLoss', 'expertDelta']
    const optimizers = ['adamw8', 'lion', 'lion8', 'sgd', 'adafactor', 'noise']
    assert.deepEqual(
      commandNames.filter((name) => !covered.has(name) && !elsewhere.includes(name) && !optimizers.includes(name)),
      [],
    )
  })
})

describe('greedy tokens in 16 bits', () => {
  it('are judged up to where rounding could decide', () => {
    const reference = Int32Array.of(0, 1, 1, 0)
    // Rows of two logits; row i decides token i + 1. The third token is a near-tie.
    const exact = Float32Array.of(0, 5, 0, 0.01, 4, 0, 0, 0)
    const rounded = exact.map((value, i) => value + (i % 2 === 0 ? 0.02 : -0.02))
    assert.deepEqual([...decidable(Int32Array.of(0, 1, 0, 1), reference, 1, { exact, rounded })], [0, 1, 1, 0])
    assert.deepEqual([...decidable(Int32Array.of(0, 0, 0, 1), reference, 1, { exact, rounded })], [0, 0, 1, 0])
  })
})
