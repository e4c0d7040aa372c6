import { llamaNames } from '../archSpec.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

const layer = 'gpt_neox.layers.N'

/** GPT-NeoX: halves side by side, each with a LayerNorm of its own; q, k and v of each head together in one matrix. */
export const gptNeox: ArchitectureFamily = {
  architectures: ['GPTNeoXForCausalLM'],
  models: 'Pythia, GPT-NeoX 20B, Dolly 2',
  spec: (config) => {
    const base = llamaLike(config, {
      architecture: 'gpt-neox',
      partialRotary: config.number(0.25, 'rotary_pct'),
      ropeTheta: config.number(1e4, 'rotary_emb_base'),
    })
    const attention = config.boolean(true, 'attention_bias')
    return {
      ...base,
      kvHeads: base.heads,
      norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_eps'), plusOne: false, bias: true },
      block: config.boolean(true, 'use_parallel_residual') ? 'parallelNorms' : 'pre',
      bias: { qkv: attention, o: attention, mlp: true },
      fused: { qkv: true, qkvByHead: true, gateUp: false },
      plainMlp: true,
      names: {
        ...llamaNames,
        embedding: 'gpt_neox.embed_in',
        finalNorm: 'gpt_neox.final_layer_norm',
        head: 'embed_out',
        qkv: `${layer}.attention.query_key_value`,
        o: `${layer}.attention.dense`,
        up: `${layer}.mlp.dense_h_to_4h`,
        down: `${layer}.mlp.dense_4h_to_h`,
        memory: { ...llamaNames.memory, head: 'lm_head' },
        attentionNorm: `${layer}.input_layernorm`,
        mlpNorm: `${layer}.post_attention_layernorm`,
      },
    }
  },
}
