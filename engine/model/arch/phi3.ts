import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Phi-3, 3.5 and 4: q, k and v in one matrix, gate and up in one, rotation of a part of each head, long contexts by longrope. */
export const phi3: ArchitectureFamily = {
  architectures: ['Phi3ForCausalLM'],
  models: 'Phi 3, 3.5, 4, 4 mini',
  spec: (config) => ({
    // Early configs call longrope "su" or "yarn".
    ...llamaLike(config, {
      architecture: 'phi3',
      normEps: 1e-5,
      window: config.number(0, 'sliding_window'),
      ropeAliases: { yarn: 'longrope' },
    }),
    fused: { qkv: true, gateUp: true },
  }),
}
