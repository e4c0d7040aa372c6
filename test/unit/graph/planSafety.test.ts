import { strict as assert } from 'node:assert'
import { cpuTarget } from '../../../engine/graph/target.ts'
import { recomputeLevels } from '../../../engine/graph/backward.ts'
import { commandSignatures } from '../../../engine/graph/commands.ts'
import { bytesPerElement } from '../../../engine/graph/dtype.ts'
import { isPlanned, type Command, type Storage, type Tensor } from '../../../engine/graph/graph.ts'
import type { Plan } from '../../../engine/graph/plan.ts'
import { trainingPlan } from '../../../engine/model/stepGraph.ts'
import { tinyConfig, tinyMixture, tinyModel } from './tinyModel.ts'

/** Four-byte words of a planned tensor's rows that a command touches: no element is smaller. */
function rowsOf({ storage }: Tensor, { tile }: Command, plan: Plan): { from: number; to: number } {
  const width = storage.cols * bytesPerElement(storage.dtype)
  const base = plan.offsets.get(storage)!
  const part = storage.rule === 'fixed' ? undefined : tile
  const first = part === undefined || storage.tiled === true ? 0 : part.first
  const rows = part === undefined ? storage.rows : Math.min(part.rows, storage.rows - first)
  return { from: (base + first * width) / 4, to: (base + (first + rows) * width) / 4 }
}

/**
 * Walks a plan and remembers which storage every word of memory belongs to since it was written last: a value that is read must be there
 * still. Returns the number of reads that were looked at.
 */
function followMemory(plan: Plan): number {
  const owners = {
    activations: new Array<Storage | undefined>(plan.activationBytes / 4),
    offloaded: new Array<Storage | undefined>(plan.offloadedBytes / 4),
  }
  let reads = 0
  plan.commands.forEach((command, at) => {
    const { outputs } = commandSignatures[command.name]
    command.tensors.forEach((tensor, operand) => {
      if (tensor === undefined || !isPlanned(tensor.storage) || operand < outputs) return
      const { from, to } = rowsOf(tensor, command, plan)
      const memory = owners[tensor.storage.arena as keyof typeof owners]
      reads += 1
      for (let word = from; word < to; ++word)
        if (memory[word] !== tensor.storage)
          assert.fail(`command ${at}, ${command.name}: ${tensor.storage.name} was overwritten by ${memory[word]?.name}`)
    })
    command.tensors.slice(0, outputs).forEach((tensor) => {
      if (tensor === undefined || !isPlanned(tensor.storage)) return
      const { from, to } = rowsOf(tensor, command, plan)
      owners[tensor.storage.arena as keyof typeof owners].fill(tensor.storage, from, to)
    })
  })
  return reads
}

describe('memory of a plan', () => {
  const models = { llama: { ...tinyConfig, num_hidden_layers: 4 }, mixture: { ...tinyMixture, num_hidden_layers: 3 } }
  const trained = { adapters: ['q_proj', 'v_proj', 'o_proj', 'down_proj'], full: 'full' } as const
  for (const [name, config] of Object.entries(models))
    for (const [what, train] of Object.entries(trained))
      for (const [dropout, dora] of name === 'llama' && what === 'adapters'
        ? ([
            [0, false],
            [0.1, false],
            [0, true],
            [0.1, true],
          ] as const)
        : ([[0, false]] as const))
        it(`keeps every value until it was read: ${name}, ${what}${dora ? ' of DoRA' : ''}${dropout > 0 ? ' with dropout' : ''}`, () => {
          const { spec, weights } = tinyModel(config, train, dropout, dora)
          for (const recompute of recomputeLevels)
            for (const tileRows of [6, 32])
              for (const offload of [0, 1, 100]) {
                const step = trainingPlan({
                  spec,
                  weights,
                  capacity: { tokens: 20, labelled: 12, sequences: 3 },
                  target: { ...cpuTarget(), tileRows },
                  dropout: dropout > 0,
                  recompute: () => recompute,
                  offload,
                })
                assert.ok(followMemory(step.plan) > 100)
              }
        })

  const plan = (options: { tileRows?: number; offload?: number }) => {
    const { spec, weights } = tinyModel({ ...tinyConfig, num_hidden_layers: 12, intermediate_size: 64 }, ['q_proj', 'down_proj'])
    const { tileRows = 1000, offload = 0 } = options
    return trainingPlan({
      spec,
      weights,
      capacity: { tokens: 64, labelled: 8, sequences: 1 },
      target: { ...cpuTarget(), tileRows },
      dropout: false,
      recompute: () => 'layer',
      offload,
    })
  }

  it('shrinks when long rows are worked through in tiles', () => {
    const [all, tiles] = [plan({}), plan({ tileRows: 8 })]
    assert.ok(
      tiles.plan.activationBytes < 0.6 * all.plan.activationBytes,
      `${tiles.plan.activationBytes} of ${all.plan.activationBytes} bytes`,
    )
    const first = tiles.plan.commands[tiles.forwardCommands]!
    assert.equal(first.name, all.plan.commands[all.forwardCommands]!.name, 'the backward pass begins with the same command')
    assert.ok(tiles.plan.commands.length > 3 * all.plan.commands.length)
  })

  it('shrinks by each activation that waits elsewhere, until only those on their way are left', () => {
    const { offloadable } = plan({})
    assert.equal(offloadable, 10)
    const sizes = Array.from({ length: offloadable + 1 }, (_, offload) => plan({ offload }).plan)
    const bytes = 64 * 8 * 4
    sizes.forEach(({ activationBytes, offloadedBytes }, count) => {
      assert.equal(offloadedBytes, count * bytes)
      if (count > 0 && count < offloadable)
        assert.equal(sizes[count - 1]!.activationBytes - activationBytes, bytes, `${count} offloaded`)
    })
  })
})
