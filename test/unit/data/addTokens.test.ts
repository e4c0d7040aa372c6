import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { parseArgs } from '../../../engine/cli/args.ts'
import { tokenizerCommand } from '../../../engine/cli/commands/tokenizer.ts'
import { tokenMatrices, type RowMatrix } from '../../../engine/data/embeddingRows.ts'
import { loadTokenizer } from '../../../engine/data/tokenizer.ts'
import { writeSafetensors } from '../../../engine/io/safetensorsWriter.ts'
import { encodeFloats, type FloatDtype } from '../../../engine/io/tensorConvert.ts'
import { describeModel } from '../../../engine/runtime/patchedModel.ts'
import { addTokens } from '../../../engine/save/addTokens.ts'
import { fixtures, folderWith, rejects, removeFolders } from './support.ts'

const bundled = join(import.meta.dirname, '../../../engine/starter/model')
const [cols, trained] = [4, 512]
const valueAt = (row: number, col: number): number => (row % 7) - 3 + col / 4

/** A folder with the tokenizer of 512 tokens and matrices of so many rows, of which those beyond 512 are zero. */
async function model(rows: number, { head = true, dtype = 'F32' }: { head?: boolean; dtype?: FloatDtype } = {}): Promise<string> {
  const folder = folderWith({
    'tokenizer.json': readFileSync(join(fixtures, 'stories260k/tokenizer.json')),
    'tokenizer_config.json': '{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}',
    'config.json': `{"model_type": "llama", "vocab_size": ${rows}, "rope_theta": 10000.0}`,
  })
  const matrix = (name: string, sign: number) => ({
    name,
    dtype,
    shape: [rows, cols],
    data: encodeFloats(
      dtype,
      Float64Array.from({ length: rows * cols }, (_, at) =>
        at < trained * cols ? sign * valueAt(Math.floor(at / cols), at % cols) : 0,
      ),
    ),
  })
  const norm = { name: 'model.norm.weight', dtype, shape: [cols], data: encodeFloats(dtype, Float64Array.of(1, 2, 3, 4)) }
  await writeSafetensors(join(folder, 'model.safetensors'), [
    matrix('model.embed_tokens.weight', 1),
    ...(head ? [matrix('lm_head.weight', -1)] : []),
    norm,
  ])
  return folder
}
const rowOf = async (matrix: RowMatrix, row: number): Promise<number[]> => [
  ...(await matrix.each([row], (values) => [...values])).get(row)!,
]
const mean = (sign: number, rows = Array.from({ length: trained }, (_, row) => row)): number[] =>
  Array.from({ length: cols }, (_, col) => (sign * rows.reduce((sum, row) => sum + valueAt(row, col), 0)) / rows.length)
const close = (got: readonly number[], expected: readonly number[]): void =>
  got.forEach((value, index) =>
    assert.ok(Math.abs(value - expected[index]!) < 1e-5, `${got.join()} instead of ${expected.join()}`),
  )

describe('adding tokens', () => {
  after(removeFolders)

  it('grows embedding and output matrix by the mean of their trained rows, and tells config and tokenizer', async () => {
    const folder = await model(512)
    const target = join(folderWith({}), 'grown')
    const result = await addTokens(folder, target, { tokens: ['<think>', '</think>', '<think>', 'Once'], multipleOf: 8 })
    const added = [
      { token: '<think>', id: 512 },
      { token: '</think>', id: 513 },
    ]
    const known = (await loadTokenizer(folder)).idOf('Once') !== undefined
    assert.deepEqual(result.added.slice(0, 2), added)
    assert.deepEqual(
      [result.rowsBefore, result.rows, result.matrices, result.added.length],
      [512, 520, ['model.embed_tokens.weight', 'lm_head.weight'], known ? 2 : 3],
    )
    const { embedding, head } = await tokenMatrices(target)
    assert.deepEqual([embedding!.rows, head!.rows], [520, 520])
    close(await rowOf(embedding!, 513), mean(1))
    close(await rowOf(head!, 512), mean(-1))
    close(
      await rowOf(embedding!, 100),
      Array.from({ length: cols }, (_, col) => valueAt(100, col)),
    )
    close(await rowOf(embedding!, 519), [0, 0, 0, 0])
    assert.match(readFileSync(join(target, 'config.json'), 'utf8'), /"rope_theta": 10000\.0,\n {2}"vocab_size": 520/)
    const native = NativeTokenizer.fromFile(join(target, 'tokenizer.json'))
    const ids = (await native.encode('a<think>b</think>', null, { addSpecialTokens: false })).getIds()
    const tokenizer = await loadTokenizer(target)
    assert.deepEqual([...tokenizer.encode('a<think>b</think>')], ids)
    assert.ok(ids.includes(512) && ids.includes(513) && !tokenizer.specialIds.has(512))
  })

  it('begins a row between the mean and the pieces that the token had', async () => {
    const folder = await model(512, { head: false })
    const target = join(folderWith({}), 'grown')
    await addTokens(folder, target, { tokens: ['<think>'], method: 'interpolation', interpolation: 0.25 })
    const pieces = [...(await loadTokenizer(folder)).encode('<think>')]
    const { embedding, head } = await tokenMatrices(target)
    assert.equal(head, undefined)
    const [all, own] = [mean(1), mean(1, pieces)]
    close(
      await rowOf(embedding!, 512),
      all.map((value, col) => 0.75 * value + 0.25 * own[col]!),
    )
  })

  it('uses rows that are free, and never makes a matrix smaller', async () => {
    const folder = await model(600, { dtype: 'BF16' })
    const target = join(folderWith({}), 'grown')
    assert.deepEqual((await addTokens(folder, target, { tokens: ['<x>'] })).rows, 600)
    const { embedding } = await tokenMatrices(target)
    // 8 bits of precision.
    ;(await rowOf(embedding!, 512)).forEach((value, col) =>
      assert.ok(Math.abs(value - mean(1)[col]!) <= 2 ** -8 * Math.abs(value)),
    )
    assert.deepEqual(await rowOf(embedding!, 513), [0, 0, 0, 0])
  })

  it('makes a model that can be read', async () => {
    const target = join(folderWith({}), 'grown')
    const { rows } = await addTokens(bundled, target, { tokens: ['<think>'] })
    const { spec } = await describeModel(target)
    assert.equal(spec.vocabulary, rows)
  })

  it('is a command', async () => {
    const target = join(folderWith({}), 'grown')
    const args = parseArgs([
      'tokenizer',
      bundled,
      '--add_tokens',
      '<think> </think>',
      '--output',
      target,
      '--interpolation',
      '0.5',
      '--json',
    ])
    const lines: string[] = []
    const log = console.log
    console.log = (line: string) => lines.push(line)
    try {
      assert.equal(args.command === 'tokenizer' && (await tokenizerCommand(args)), 0)
    } finally {
      console.log = log
    }
    assert.deepEqual((JSON.parse(lines.join('\n')) as { added: unknown[] }).added.length, 2)
    assert.ok((await loadTokenizer(target)).idOf('</think>') !== undefined)
  })

  it('refuses what is there already, and leaves nothing of a failure', async () => {
    const folder = await model(512)
    const target = join(folderWith({}), 'grown')
    await rejects(
      addTokens(folder, target, { tokens: ['<s>'] }),
      'USAGE',
      /The tokenizer has "<s>" already; there is nothing to add/,
    )
    await rejects(addTokens(folder, target, { tokens: [' '] }), 'USAGE', /is no token/)
    await rejects(addTokens(folder, folder, { tokens: ['<x>'] }), 'FILE_WRITE', /is there already/)
    await rejects(addTokens(folder, target, { tokens: ['<x>'], interpolation: 2 }), 'USAGE', /not between 0 and 1/)
    assert.equal(existsSync(target), false)
  })
})
