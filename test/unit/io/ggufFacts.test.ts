import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { ggufFacts } from '../../../engine/io/ggufFacts.ts'

const u32 = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer)
const u64 = (value: number): Buffer => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
const text = (value: string): Buffer => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])

/** A file of two tensors behind a vocabulary that is larger than what is read at once. */
function smallModel(): Buffer {
  const words = Array.from({ length: 60_000 }, (_, at) => text(`a word of the vocabulary, number ${at}`))
  const entries = [
    Buffer.concat([text('general.architecture'), u32(8), text('llama')]),
    Buffer.concat([text('general.name'), u32(8), text('Tiny')]),
    Buffer.concat([text('general.quantization_version'), u32(4), u32(2)]),
    Buffer.concat([text('llama.rope.freq_base'), u32(6), Buffer.from(Float32Array.of(1e4).buffer)]),
    Buffer.concat([text('tokenizer.ggml.tokens'), u32(9), u32(8), u64(words.length), ...words]),
    Buffer.concat([text('tokenizer.ggml.scores'), u32(9), u32(6), u64(words.length), Buffer.alloc(4 * words.length)]),
    Buffer.concat([text('llama.context_length'), u32(4), u32(4096)]),
  ]
  const tensors = [
    Buffer.concat([text('output_norm.weight'), u32(1), u64(64), u32(0), u64(0)]),
    Buffer.concat([text('blk.0.attn_q.weight'), u32(2), u64(64), u64(100), u32(12), u64(256)]),
  ]
  return Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(entries.length),
    ...entries,
    ...tensors,
    Buffer.alloc(64),
  ])
}

describe('what a GGUF file says of itself', () => {
  let folder: string
  const file = (bytes: Buffer): string => {
    const path = join(folder, 'model.gguf')
    writeFileSync(path, bytes)
    return path
  }
  before(() => (folder = mkdtempSync(join(tmpdir(), 'unsloth-gguf-'))))
  after(() => rmSync(folder, { recursive: true }))

  it('is its architecture, parameters and types', async () => {
    assert.deepEqual(await ggufFacts(file(smallModel())), {
      architecture: 'llama',
      name: 'Tiny',
      contextLength: 4096,
      parameters: 6464,
      types: ['Q4_K', 'F32'],
    })
  })

  it('is read from a file of llama.cpp', async () => {
    const member = 'llama.cpp-b9888/models/ggml-vocab-llama-bpe.gguf'
    const archive = join('node_modules', '@milk2025', 'llama-cpp-source', 'llama.cpp-b9888.tar.gz')
    execFileSync('tar', ['xzf', archive, '-C', folder, '--strip-components=2', member])
    const { architecture, contextLength, parameters } = await ggufFacts(join(folder, 'ggml-vocab-llama-bpe.gguf'))
    assert.deepEqual([architecture, contextLength, parameters], ['llama', 8192, 0])
  })

  it('of a damaged file is told with its place, whatever is wrong', async () => {
    const whole = smallModel()
    const refused = (bytes: Buffer, expected: RegExp): Promise<void> =>
      assert.rejects(ggufFacts(file(bytes)), (error) => UnslothError.is(error, 'FILE_FORMAT') && expected.test(error.message))
    await refused(Buffer.from('no such thing'), /no GGUF file/)
    await refused(Buffer.concat([whole.subarray(0, 4), u32(9), whole.subarray(8)]), /version 9/)
    for (const length of [3, 20, 50, 1000, whole.length - 100])
      await refused(whole.subarray(0, length), /the head ends at byte \d+/)
    const huge = Buffer.from(whole)
    huge.writeBigUInt64LE(2n ** 60n, 24)
    await refused(huge, /a text of \d+ bytes/)
    assert.equal(readFileSync(file(whole)).length, whole.length)
  })
})
