import { strict as assert } from 'node:assert'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cpuTarget } from '../../engine/graph/target.ts'
import { openTensorSource, readFloat32, requireTensor } from '../../engine/io/tensorSource.ts'
import { toFileForm, toGraphForm } from '../../engine/model/storedForm.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel, type Training } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { saveMerged } from '../../engine/save/saveMerged.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { assertClose, relativeError, temporaryFolder } from './support.ts'

const probes = [Int32Array.from({ length: 24 }, (_, i) => 3 + ((i * 37) % 250))]

describe('matrices that files order otherwise', () => {
  const folder = temporaryFolder()
  const open: Runtime[] = []
  afterEach(() => open.splice(0).forEach((runtime) => runtime.dispose()))

  async function load(path: string, training: Training = { kind: 'none' }): Promise<LoadedModel> {
    const runtime = new Runtime({ kind: 'cpu', threads: 1 })
    open.push(runtime)
    return LoadedModel.load(patchModel(await describeModel(path), training, cpuTarget()), runtime, { seed: 1 })
  }
  const lora: Training = { kind: 'lora', r: 4, alpha: 8, dropout: 0, rslora: false, targets: 'all-linear', modulesToSave: [] }

  async function unpacked(name: string): Promise<string> {
    const path = join(folder, name)
    await unpackCase(join(import.meta.dirname, `../fixtures/golden/${name}${packedSuffix}`), path)
    // Saving copies the tokenizer's files, whatever they are.
    for (const file of ['tokenizer.json', 'tokenizer_config.json']) writeFileSync(join(path, file), '{}')
    return path
  }

  it('turn into the graph’s order and back', () => {
    // Two heads of q, k (one row each) and v (two rows), in columns of two.
    const file = Uint16Array.from({ length: 16 }, (_, i) => i)
    const form = { grouped: { groups: 2, parts: [1, 1, 2] } }
    const graph = toGraphForm(file, form, 8, 2)
    assert.deepEqual([...graph], [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15])
    assert.deepEqual(toFileForm(graph, form, 8, 2), file)
    const transposed = toGraphForm(file, { transposed: true }, 2, 8)
    assert.deepEqual([...transposed.subarray(0, 8)], [0, 2, 4, 6, 8, 10, 12, 14])
    assert.deepEqual(toFileForm(transposed, { transposed: true }, 2, 8), file)
  })

  for (const [name, tensor] of [
    ['gpt2', 'transformer.h.1.attn.c_attn.weight'],
    ['gpt-neox', 'gpt_neox.layers.1.attention.query_key_value.weight'],
    ['falcon', 'transformer.h.1.self_attention.query_key_value.weight'],
  ] as const)
    it(`${name}: a merged model has the file’s shapes and answers as the adapter does`, async () => {
      const path = await unpacked(name)
      const model = await load(path, lora)
      for (const { name: parameter, rows, cols } of model.patched.layout.parameters)
        model.writeParameter(
          parameter,
          Float32Array.from({ length: rows * cols }, (_, i) => 0.1 * Math.sin(i * 12.9898 + parameter.length)),
        )
      const [base, adapted] = [await allLogits(model, model.base, probes), await allLogits(model, model.trained, probes)]
      assert.ok(relativeError(adapted, base) > 0.05, 'the adapter does something')
      const merged = join(folder, `${name}-merged`)
      await saveMerged(model, merged, { maxShardSize: '5GB', probes })
      const [before, after] = await Promise.all(
        [path, merged].map(async (saved) => requireTensor(await openTensorSource(saved), tensor)),
      )
      assert.deepEqual(after!.shape, before!.shape)
      assert.ok(
        relativeError(await readFloat32(after!), await readFloat32(before!)) < 0.5,
        'the base shines through in the same order',
      )
      const again = await load(merged)
      assertClose(await allLogits(again, again.trained, probes), adapted, 2e-2, 'logits')
    })

  it('GPT-2 is read from files without the prefix, as it is published', async () => {
    const path = await unpacked('gpt2')
    const model = await load(path)
    const short = join(folder, 'short')
    cpSync(path, short, { recursive: true })
    const file = readFileSync(join(short, 'model.safetensors'))
    const length = Number(file.readBigUInt64LE(0))
    const header = file
      .toString('utf8', 8, 8 + length)
      .replaceAll('"transformer.', '"')
      .padEnd(length)
    file.write(header, 8)
    writeFileSync(join(short, 'model.safetensors'), file)
    const published = await load(short)
    assert.ok(published.patched.model.source.tensors.has('h.0.attn.c_attn.weight'))
    assert.deepEqual(await allLogits(published, published.base, probes), await allLogits(model, model.base, probes))
    const full = await load(short, { kind: 'full' })
    assert.ok(full.patched.layout.parameters.some(({ name }) => name === 'transformer.wpe.weight'))
    assertClose(await allLogits(full, full.trained, probes), await allLogits(model, model.base, probes), 1e-6, 'trained whole')
  })
})
