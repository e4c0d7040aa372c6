import type { ArchitectureFamily } from '../registry.ts'
import { mixture } from './common.ts'
import { qwen2 } from './qwen2.ts'

/** Qwen 1.5 and 2 mixtures: Qwen2 with experts and, beside them, one that every token goes to. */
export const qwen2Moe: ArchitectureFamily = {
  architectures: ['Qwen2MoeForCausalLM'],
  models: 'Qwen 1.5 A2.7B, Qwen 2 57B-A14B',
  spec: (config) => {
    const base = qwen2.spec(config)
    const dense = config.numbers('mlp_only_layers') ?? []
    const every = config.number(1, 'decoder_sparse_step')
    return {
      ...base,
      architecture: 'qwen2-moe',
      bias: { ...base.bias, qkv: config.boolean(true, 'qkv_bias') },
      moe: mixture(config, {
        experts: config.number(60, 'num_experts', 'num_local_experts'),
        choices: config.number(4, 'num_experts_per_tok'),
        ffn: config.number(1408, 'moe_intermediate_size'),
        sharedFfn: config.number(5632, 'shared_expert_intermediate_size'),
        renormalise: config.boolean(false, 'norm_topk_prob'),
        layers: base.attention.kinds.map((_, layer) => !dense.includes(layer) && (layer + 1) % every === 0),
      }),
    }
  },
}
