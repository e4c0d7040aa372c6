import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cudaTarget } from '../../engine/graph/target.ts'
import { writeSafetensors } from '../../engine/io/safetensorsWriter.ts'
import { compare, type Verdict } from '../../engine/verify/compare.ts'
import { Golden, type Quantity } from '../../engine/verify/golden.ts'
import errors from '../../engine/verify/sixteenBitErrors.json' with { type: 'json' }
import { caseNames, unpackCases } from '../golden/verifyCase.ts'

const bytes = (values: Float32Array) => new Uint8Array(values.buffer)
const size = 64
const reference = Float32Array.from({ length: size }, (_, i) => Math.sin(1 + i))

describe('references compared in 16 bits', () => {
  let folder = ''
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'golden-'))
    const tensor = (name: string, values: Float32Array) => ({
      name,
      dtype: 'F32' as const,
      shape: [values.length],
      data: bytes(values),
    })
    const matrices = ['lora_logits', 'lora_grad.q', 'lora_grad.v', 'pissa.q'].map((name) => tensor(name, reference))
    const tensors = [...matrices, tensor('lora_loss', Float32Array.of(2))]
    for (const name of ['llama', 'unmeasured']) {
      await mkdir(join(folder, name))
      await writeSafetensors(join(folder, name, 'golden.safetensors'), tensors)
    }
    await mkdir(join(folder, 'telling'))
    const told = tensor('bf16_error.lora_grad', Float32Array.of(0.04))
    await writeSafetensors(join(folder, 'telling', 'golden.safetensors'), [...tensors, told])
  })
  after(() => rm(folder, { recursive: true }))

  /** What is found when everything is off by so much of its size. */
  async function found(
    verdict: Verdict,
    name: string,
    compute: 'tfloat32' | 'bfloat16' | 'float16',
    error: number,
  ): Promise<string[]> {
    const off = (values: Float32Array): Quantity => ({ shape: [values.length], data: values.map((value) => value * (1 + error)) })
    const golden = await Golden.open(join(folder, name))
    const computed = new Map<string, Quantity>()
    for (const quantity of golden.expected())
      computed.set(quantity, quantity === 'pissa.q' ? { shape: [size], data: reference } : off(await golden.floats(quantity)))
    const results = await compare(golden, computed, new Set(), cudaTarget(compute))
    return results
      .filter((result) => result.verdict === verdict)
      .map((result) => result.name)
      .sort()
  }

  it('have bounds of bf16, and an eighth of them in fp16; gradients 1.5 times the error of HF', async () => {
    const { bf16, f16 } = errors.llama
    assert.ok(bf16.lora_grad > 0.005 && bf16.lora_grad < 0.02 && f16.lora_grad < bf16.lora_grad / 5)
    for (const [compute, own, finer] of [
      ['bfloat16', bf16, 1],
      ['float16', f16, 8],
      ['tfloat32', f16, 8],
    ] as const) {
      assert.deepEqual(await found('wrong', 'llama', compute, 4e-3 / finer), [])
      assert.deepEqual(await found('wrong', 'llama', compute, 6e-3 / finer), ['lora_loss'])
      for (const [times, wrong] of [
        [1.49, false],
        [1.51, true],
      ] as const)
        assert.equal((await found('wrong', 'llama', compute, times * own.lora_grad)).includes('lora_grad'), wrong)
      assert.deepEqual(await found('wrong', 'llama', compute, 3e-2 / finer), ['lora_grad', 'lora_logits', 'lora_loss'])
    }
  })

  it('where HF was not measured have their gradients left out, not passed', async () => {
    assert.deepEqual(await found('skipped', 'unmeasured', 'bfloat16', 1), ['lora_grad'])
    assert.deepEqual(await found('wrong', 'unmeasured', 'bfloat16', 1), ['lora_logits', 'lora_loss'])
  })

  it('that tell the error of HF themselves are judged by that', async () => {
    for (const [compute, finer] of [
      ['bfloat16', 1],
      ['float16', 8],
    ] as const) {
      assert.deepEqual(await found('wrong', 'telling', compute, 0.059 / finer), ['lora_logits', 'lora_loss'])
      assert.deepEqual(await found('wrong', 'telling', compute, 0.061 / finer), ['lora_grad', 'lora_logits', 'lora_loss'])
    }
  })

  it('of what activations have no part in are those of fp32', async () => {
    const golden = await Golden.open(join(folder, 'llama'))
    const verdict = async (error: number) => {
      const computed = new Map([['pissa.q', { shape: [size], data: reference.map((value) => value * (1 + error)) }]])
      return (await compare(golden, computed, new Set(), cudaTarget('bfloat16'))).find(({ name }) => name === 'pissa.q')!.verdict
    }
    assert.deepEqual([await verdict(5e-5), await verdict(2e-4)], ['ok', 'wrong'])
  })
})

describe('golden cases', () => {
  it('are folders that hold the model, too', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'golden-'))
    try {
      assert.equal(Golden.isCase(folder), false)
      await writeFile(join(folder, 'golden.safetensors'), '')
      assert.equal(Golden.isCase(folder), false)
      await writeFile(join(folder, 'config.json'), '{}')
      assert.equal(Golden.isCase(folder), true)
      await mkdir(join(folder, 'bnb-4bit'))
      assert.equal(Golden.isCase(folder), false)
      await writeFile(join(folder, 'bnb-4bit', 'config.json'), '{}')
      assert.equal(Golden.isCase(folder), true)
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('all have figures of transformers and PEFT for every kind that they hold', async () => {
    const folder = await unpackCases()
    try {
      for (const name of caseNames) {
        const golden = await Golden.open(join(folder, name))
        const results = await compare(golden, new Map(), new Set(), cudaTarget('float16'))
        assert.deepEqual(
          results.filter(({ verdict }) => verdict === 'skipped'),
          [],
          name,
        )
      }
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
