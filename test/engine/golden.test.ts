import { strict as assert } from 'node:assert'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { compare } from '../../engine/verify/compare.ts'
import { CaseComputation } from '../../engine/verify/compute.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { cpuTarget } from '../../engine/graph/target.ts'
import { describeModel, patchModel } from '../../engine/runtime/patchedModel.ts'
import type { Quantisation } from '../../engine/runtime/quantisedWeights.ts'
import { packedCases, packedSuffix, unpackCase } from '../golden/packedCase.ts'

const fixtures = join(dirname(fileURLToPath(import.meta.url)), '../fixtures/golden')

/** The weights of these cases are numbers that NF4 has: quantised, they must give what they gave PEFT. */
const nf4: Quantisation = { kind: 'load', type: 'nf4', nested: false }

/** Fails unless every quantity of the case is within its tolerance. */
async function verify(folder: string): Promise<void> {
  const quantised = folder.endsWith('-nf4')
  const golden = await Golden.open(folder)
  const computation = new CaseComputation(golden, { device: { kind: 'cpu', threads: 2 }, compute: 'float32', ...(quantised ? { quantisation: nf4 } : {}) })
  await computation.run()
  const results = await compare(golden, computation.quantities, new Set())
  assert.ok(results.length > 15, `only ${results.length} quantities`)
  const bad = results.filter(({ verdict }) => verdict !== 'ok')
  assert.deepEqual(bad.map(({ name, verdict, error, tolerance }) => `${name}: ${verdict}, error ${error}, allowed ${tolerance}`), [])
}

describe('models made by transformers and PEFT', () => {
  let folder: string
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'golden-'))
    for (const name of await packedCases(fixtures)) await unpackCase(join(fixtures, `${name}${packedSuffix}`), join(folder, name))
  })
  after(() => rm(folder, { recursive: true }))

  // Listed here, so that a case that gets lost is a failure.
  const required = [
    'llama', 'llama-rope-llama3', 'llama-rope-linear', 'llama-dynamic', 'llama-gqa', 'llama-bias', 'llama-embed', 'llama-rslora', 'mistral', 'mistral-nemo',
    'mistral-300', 'qwen2', 'qwen2-rope-yarn', 'qwen3',
    'tiny-gemma', 'tiny-gemma2', 'tiny-gemma3', 'tiny-phi3', 'tiny-phi3-short', 'tiny-phi3-long', 'tiny-cohere', 'tiny-cohere2', 'tiny-granite', 'tiny-olmo2',
    'tiny-olmo3', 'tiny-smollm3', 'tiny-mixtral', 'tiny-mixtral-down', 'tiny-mixtral-stacked', 'tiny-qwen3-moe', 'tiny-granite-moe', 'tiny-glm4',
    'tiny-seed-oss', 'tiny-ernie', 'tiny-starcoder2', 'tiny-stablelm', 'olmo', 'phi', 'gpt-neox', 'gpt2', 'falcon', 'qwen2-moe',
    'dora', 'dora-bias', 'dora-fused', 'dora-granite', 'dora-grouped', 'dora-nf4', 'lora-options', 'lora-bias', 'lora-starts',
  ]
  it('are all here', async () => {
    assert.deepEqual((await readdir(folder)).sort(), [...required].sort())
  })
  it('dora-nf4: its projections stand in 4 bits', async () => {
    const { arena } = patchModel(await describeModel(join(folder, 'dora-nf4')), { kind: 'none' }, cpuTarget(), { quantisation: nf4 })
    const linear = [...arena.weights].filter(([id]) => /(qkv|o|gateUp|down)$/.test(id))
    assert.deepEqual(linear.map(([, { value }]) => value.storage.dtype), Array.from({ length: 8 }, () => 'q4'))
  })
  for (const name of required) it(`${name}: logits, losses, gradients, training, merging and greedy tokens`, () => verify(join(folder, name)))
})
