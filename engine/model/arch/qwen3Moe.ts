import type { ArchitectureFamily } from '../registry.ts'
import { mixture } from './common.ts'
import { qwen3 } from './qwen3.ts'

/** Qwen3 mixtures: Qwen3 with experts in all layers but those that the config names. */
export const qwen3Moe: ArchitectureFamily = {
  architectures: ['Qwen3MoeForCausalLM'],
  models: 'Qwen 3 30B-A3B, 235B-A22B, Coder',
  spec: (config) => {
    const base = qwen3.spec(config)
    const dense = config.numbers('mlp_only_layers') ?? []
    const every = config.number(1, 'decoder_sparse_step')
    return {
      ...base,
      architecture: 'qwen3-moe',
      moe: mixture(config, {
        experts: config.number(128, 'num_local_experts', 'num_experts'),
        choices: config.number(8, 'num_experts_per_tok'),
        ffn: config.number(768, 'moe_intermediate_size'),
        renormalise: config.boolean(false, 'norm_topk_prob'),
        layers: base.attention.kinds.map((_, layer) => !dense.includes(layer) && (layer + 1) % every === 0),
      }),
    }
  },
}
