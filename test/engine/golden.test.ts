import { strict as assert } from 'node:assert'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { cpuTarget } from '../../engine/graph/target.ts'
import { describeModel, patchModel } from '../../engine/runtime/patchedModel.ts'
import { caseNames, nf4, unpackCases, verifyCase } from '../golden/verifyCase.ts'

describe('models made by transformers and PEFT', () => {
  let folder: string
  before(async () => {
    folder = await unpackCases()
  })
  after(() => rm(folder, { recursive: true }))

  it('are all here', async () => {
    assert.deepEqual((await readdir(folder)).sort(), [...caseNames].sort())
  })
  it('dora-nf4: its projections stand in 4 bits', async () => {
    const { arena } = patchModel(await describeModel(join(folder, 'dora-nf4')), { kind: 'none' }, cpuTarget(), {
      quantisation: nf4,
    })
    const linear = [...arena.weights].filter(([id]) => /(qkv|o|gateUp|down)$/.test(id))
    assert.deepEqual(
      linear.map(([, { value }]) => value.storage.dtype),
      Array.from({ length: 8 }, () => 'q4'),
    )
  })
  for (const name of caseNames)
    it(`${name}: logits, losses, gradients, training, merging and greedy tokens`, () =>
      verifyCase(join(folder, name), { kind: 'cpu', threads: 2 }, 'float32'))
})
