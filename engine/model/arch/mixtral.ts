import { llamaNames } from '../archSpec.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike, mixture } from './common.ts'

const block = 'model.layers.N.block_sparse_moe'

/** Mixtral: every MLP a mixture, two experts a token. */
export const mixtral: ArchitectureFamily = {
  architectures: ['MixtralForCausalLM'],
  models: 'Mixtral 8x7B and 8x22B',
  spec: (config) => {
    const base = llamaLike(config, {
      architecture: 'mixtral',
      normEps: 1e-5,
      ropeTheta: 1e6,
      window: config.number(0, 'sliding_window'),
    })
    return {
      ...base,
      moe: mixture(config, {
        experts: config.number(8, 'num_local_experts', 'num_experts'),
        choices: config.number(2, 'num_experts_per_tok'),
        ffn: base.ffn,
        renormalise: true,
        layers: base.attention.kinds.map(() => true),
      }),
      names: {
        ...llamaNames,
        router: `${block}.gate`,
        expertGate: `${block}.experts.E.w1`,
        expertUp: `${block}.experts.E.w3`,
        expertDown: `${block}.experts.E.w2`,
      },
    }
  },
}
