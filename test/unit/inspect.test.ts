import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect, inspectPath } from '../../engine/cli/inspect.ts'
import { parseSafetensorsHeader } from '../../engine/io/safetensors.ts'
import { writeSafetensors, type NamedTensor } from '../../engine/io/safetensorsWriter.ts'
import { groupTensors, parametersByType, totalsByType } from '../../engine/io/tensorGroups.ts'
import { failure, fixture, useFolder } from './io/support.ts'

const zeros = (name: string, shape: number[]): NamedTensor => ({
  name,
  dtype: 'BF16',
  shape,
  data: new Uint8Array(2 * shape.reduce((a, b) => a * b, 1)),
})

describe('inspect', () => {
  const folder = useFolder()

  async function writeModel(): Promise<void> {
    for (const name of ['config.json', 'generation_config.json']) copyFileSync(fixture(`model/${name}`), join(folder(), name))
    writeFileSync(join(folder(), 'tokenizer.json'), '{}')
    const layers = [0, 1, 2, 4].flatMap((layer) => [
      zeros(`model.layers.${layer}.q.weight`, [2, 3]),
      zeros(`model.layers.${layer}.norm.weight`, [layer === 2 ? 5 : 3]),
    ])
    await writeSafetensors(join(folder(), 'model.safetensors'), [zeros('lm_head.weight', [1000, 3]), ...layers])
  }

  it('shows a model as aligned tables, with layers in one line', async () => {
    await writeModel()
    assert.equal(
      await inspect(folder()),
      `${folder()}: model

Architecture      LlamaForCausalLM
Model type        llama
Context length    256
Layers            2
Hidden size       64
MLP size          128
Attention heads   2
Key/value heads   1
Head size         64
Vocabulary        256
Rotary embedding  default, theta 10,000
Tied embeddings   false
Data type         bfloat16
Tokenizer         tokenizer.json
Parameters        3,038 (3.04K BF16)
Size              5.9 KB in 1 file

Metadata
  format  pt

Tensor                            Type  Shape      Count    Size
lm_head.weight                    BF16  [1000, 3]      1  5.9 KB
model.layers.{0…1,4}.norm.weight  BF16  [3]            3    18 B
model.layers.{0…2,4}.q.weight     BF16  [2, 3]         4    48 B
model.layers.2.norm.weight        BF16  [5]            1    10 B

Type  Tensors  Elements    Size
BF16        9     3,038  5.9 KB
`,
    )
  })

  it('lists every tensor with --all', async () => {
    await writeModel()
    const text = await inspect(folder(), { all: true })
    assert.equal(text.split('\n').filter((line) => /^(lm_head|model\.layers)\./.test(line)).length, 9)
    assert.match(text, /^model\.layers\.4\.q\.weight {2,}BF16 {2}\[2, 3\] +12 B$/m)
    assert.doesNotMatch(text, /Count/)
  })

  it('gives everything as JSON', async () => {
    await writeModel()
    const report = JSON.parse(await inspect(folder(), { json: true })) as Awaited<ReturnType<typeof inspectPath>>
    assert.deepEqual([report.kind, report.parameters.total, report.bytes, report.tensors.length], ['model', 3038, 6076, 9])
    assert.deepEqual(report.tensors[0], { name: 'lm_head.weight', dtype: 'BF16', shape: [1000, 3], bytes: 6000 })
    assert.deepEqual(
      [report.facts.Architecture, report.facts['Context length'], report.metadata],
      ['LlamaForCausalLM', 256, { format: 'pt' }],
    )
  })

  it('shows an adapter', async () => {
    const text = await inspect(fixture('adapter'))
    for (const line of [
      /: LoRA adapter$/m,
      /^Base model +llama$/m,
      /^Rank \(r\) +4$/m,
      /^Alpha +8$/m,
      /^Scale +2$/m,
      /^Adapted modules +14: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$/m,
      /^Parameters +9,728 \(9\.73K F32\)$/m,
    ])
      assert.match(text, line)
  })

  it('shows a single file with its metadata, and no terminal codes of hostile names', async () => {
    const path = join(folder(), 'x.safetensors')
    await writeSafetensors(path, [zeros('\u001b[31mred\u202e', [1])], { metadata: { note: 'a\nb' } })
    const text = await inspect(path)
    assert.match(text, /^\\u001b\[31mred\\u202e {2}BF16 {2}\[1\] +2 B$/m)
    assert.match(text, /^ {2}note {2}a\\u000ab$/m)
    assert.match(text, /^Elements +1 \(1 BF16\)$/m)
  })

  it('names what cannot be inspected', async () => {
    await assert.rejects(inspectPath(join(folder(), 'none')), failure('FILE_NOT_FOUND', /no such file/))
    await assert.rejects(inspectPath(folder()), failure('FILE_NOT_FOUND', /neither model\.safetensors/))
    writeFileSync(join(folder(), 'bad.safetensors'), 'GGUF\x03\0\0\0rest of it')
    await assert.rejects(inspectPath(join(folder(), 'bad.safetensors')), failure('FILE_FORMAT', /not a safetensors file/, /GGUF/))
    copyFileSync(fixture('model/config.json'), join(folder(), 'config.json'))
    copyFileSync(fixture('adapter/adapter_config.json'), join(folder(), 'adapter_config.json'))
    await assert.rejects(inspectPath(folder()), failure('MODEL_INVALID', /LoRA adapter .* and a base model/))
  })
})

describe('tensor groups', () => {
  const header = readFileSync(fixture('nf4-header.bin'))

  it('counts the parameters of a bitsandbytes model as they were before packing', () => {
    const { tensors } = parseSafetensorsHeader(header.subarray(8), 307_164, 'nf4')
    const described = new Map(
      tensors.map(({ name, dtype, shape, begin, end }) => [name, { name, dtype, shape, bytes: end - begin }]),
    )
    const parameters = parametersByType(described).map(({ type, elements }) => [type, elements])
    // Two layers: MLP 3·128·256, q and o 128·128, k and v 64·128; head, embedding and five norms stay BF16.
    assert.deepEqual(parameters, [
      ['NF4', 2 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 64 * 128)],
      ['BF16', 2 * 256 * 128 + 5 * 128],
    ])
    assert.equal(
      totalsByType(described.values()).reduce((sum, { bytes }) => sum + bytes, 0),
      307_164 - header.length,
    )
  })

  it('joins only what differs in numbers alone', () => {
    const tensor = (name: string, shape = [1]): { name: string; dtype: 'U8'; shape: number[]; bytes: number } => ({
      name,
      dtype: 'U8',
      shape,
      bytes: 1,
    })
    const names = (...list: string[]): string[] =>
      groupTensors(list.map((name) => tensor(name))).map(({ name, count }) => `${name} ×${count}`)
    assert.deepEqual(names('l.0.e.0.w', 'l.0.e.1.w', 'l.1.e.0.w', 'l.1.e.1.w'), ['l.{0…1}.e.{0…1}.w ×4'])
    assert.deepEqual(names('l.0.w', 'l.00.w', 'l.#.w', 'l.1.w', 'l1.w', '5'), [
      'l.{0…1}.w ×2',
      'l.00.w ×1',
      'l.#.w ×1',
      'l1.w ×1',
      '5 ×1',
    ])
    assert.equal(groupTensors([tensor('a.0', [1]), tensor('a.1', [2])]).length, 2)
  })
})
