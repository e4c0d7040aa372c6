import { llamaNames, type ArchSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike, mixture } from './common.ts'

/** Llama with factors on the embedding, on both branches, on the attention scores and on the logits. */
function graniteLike(config: Config, architecture: string): ArchSpec {
  const base = llamaLike(config, { architecture })
  const attention = config.boolean(false, 'attention_bias')
  return {
    ...base,
    bias: { qkv: attention, o: attention, mlp: config.boolean(false, 'mlp_bias') },
    attention: { ...base.attention, scale: config.number(1, 'attention_multiplier') },
    multiplier: {
      embedding: config.number(1, 'embedding_multiplier'),
      embeddingRounds: false,
      residual: config.number(1, 'residual_multiplier'),
      logits: 1 / config.number(1, 'logits_scaling'),
    },
  }
}

export const granite: ArchitectureFamily = {
  architectures: ['GraniteForCausalLM'],
  models: 'Granite 3, dense',
  spec: (config) => graniteLike(config, 'granite'),
}

const block = 'model.layers.N.block_sparse_moe'

/** All experts of a layer in one tensor, in files as in memory. */
export const graniteMoe: ArchitectureFamily = {
  architectures: ['GraniteMoeForCausalLM'],
  models: 'Granite 3 1B-A400M, 3B-A800M',
  spec: (config) => {
    const base = graniteLike(config, 'granite-moe')
    return {
      ...base,
      moe: mixture(config, {
        experts: config.number(8, 'num_local_experts'),
        choices: config.number(2, 'num_experts_per_tok'),
        ffn: base.ffn,
        renormalise: true,
        layers: base.attention.kinds.map(() => true),
      }),
      names: {
        ...llamaNames,
        router: `${block}.router.layer`,
        stackedExperts: { gateUp: `${block}.input_linear.weight`, down: `${block}.output_linear.weight` },
        memory: {
          router: `${block}.router`,
          expertGateUp: `${block}.experts.gate_up_proj`,
          expertDown: `${block}.experts.down_proj`,
        },
      },
    }
  },
}
