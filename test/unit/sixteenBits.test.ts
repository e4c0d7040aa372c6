import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cudaTarget } from '../../engine/graph/target.ts'
import { writeSafetensors } from '../../engine/io/safetensorsWriter.ts'
import { compare } from '../../engine/verify/compare.ts'
import { Golden, type Quantity } from '../../engine/verify/golden.ts'

const bytes = (values: Float32Array) => new Uint8Array(values.buffer)
const size = 64
const reference = Float32Array.from({ length: size }, (_, i) => Math.sin(1 + i))

describe('references compared in 16 bits', () => {
  let folder = ''
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'golden-'))
    const tensor = (name: string, values: Float32Array) => ({ name, dtype: 'F32' as const, shape: [values.length], data: bytes(values) })
    await writeSafetensors(join(folder, 'golden.safetensors'),
      [...['lora_logits', 'lora_grad.q', 'lora_grad.v', 'merged_logits'].map((name) => tensor(name, reference)), tensor('lora_loss', Float32Array.of(2)), tensor('bf16_error.lora_grad', Float32Array.of(0.01))])
  })
  after(() => rm(folder, { recursive: true }))

  /** What is found wrong when everything is off by so much of its size. */
  async function wrong(compute: 'bfloat16' | 'float16', error: number): Promise<string[]> {
    const off = (values: Float32Array): Quantity => ({ shape: [values.length], data: values.map((value) => value * (1 + error)) })
    const golden = await Golden.open(folder)
    const computed = new Map<string, Quantity>()
    for (const name of golden.expected()) computed.set(name, off(await golden.floats(name)))
    return (await compare(golden, computed, new Set(), cudaTarget(compute))).filter(({ verdict }) => verdict === 'wrong').map(({ name }) => name).sort()
  }

  it('have bounds of bf16, and an eighth of them in fp16, which rounds to three bits more', async () => {
    assert.deepEqual(await wrong('bfloat16', 4e-3), [])
    assert.deepEqual(await wrong('bfloat16', 1e-2), ['lora_loss'])
    assert.deepEqual(await wrong('bfloat16', 3e-2), ['lora_grad', 'lora_logits', 'lora_loss'])
    assert.deepEqual(await wrong('float16', 4e-3 / 8), [])
    assert.deepEqual(await wrong('float16', 1e-2 / 8), ['lora_loss'])
    assert.deepEqual(await wrong('float16', 3e-2 / 8), ['lora_grad', 'lora_logits', 'lora_loss'])
  })
})
