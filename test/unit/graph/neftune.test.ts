import { strict as assert } from 'node:assert'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { cpuTarget } from '../../../engine/graph/target.ts'
import { trainingPlan } from '../../../engine/model/stepGraph.ts'
import { projectRoot } from '../../../engine/projectRoot.ts'
import { tinyModel } from './tinyModel.ts'

/** Made by test/golden/neftune.py: the noise that transformers lets into the first layer. */
interface NoiseCase {
  readonly config: Record<string, unknown>
  readonly alpha: number
  readonly tokens: number
  readonly largest: number
  readonly square: number
}

describe('NEFTune noise is as large as that of transformers', () => {
  const cases = JSON.parse(readFileSync(join(projectRoot(), 'test', 'fixtures', 'peft', 'neftune.json'), 'utf8')) as NoiseCase[]
  for (const { config, alpha, tokens, largest, square } of cases)
    it(String(config.model_type), () => {
      const { spec, weights: table } = tinyModel(config, ['q_proj'])
      const weights = { ...table, weight: (id: string) => table.weight(spec.tied && id === 'head' ? 'embedding' : id) }
      const { plan } = trainingPlan({
        spec,
        weights,
        capacity: { tokens: 8, labelled: 8, sequences: 1 },
        target: cpuTarget(),
        dropout: false,
        neftune: alpha,
        recompute: () => 'none',
        offload: 0,
        lossScaling: false,
      })
      const [factor] = plan.commands.find(({ name }) => name === 'noise')!.floats
      // See `noise` in engine/graph/commands.ts and noiseScales: uniform in ±factor/√(tokens·width).
      const size = factor! / Math.sqrt(tokens * spec.hidden)
      assert.ok(largest <= size * (1 + 1e-6) && largest > size * 0.995, `${largest}, ours ${size}`)
      assert.ok(Math.abs(square / (size ** 2 / 3) - 1) < 0.02, `${square}, ours ${size ** 2 / 3}`)
    })
})
