import { llamaNames } from '../archSpec.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** GLM-4: norms before and after each half, rotation of neighbouring columns in half of each head, gate and up in one matrix. */
export const glm4: ArchitectureFamily = {
  architectures: ['Glm4ForCausalLM'],
  models: 'GLM-4 9B and 32B of 2025, GLM-Z1',
  spec: (config) => ({
    ...llamaLike(config, { architecture: 'glm4', normEps: 1.5625e-7, headDim: 128, interleavedRope: true, partialRotary: 0.5 }),
    block: 'prePost',
    bias: { qkv: config.boolean(false, 'attention_bias'), o: false, mlp: false },
    fused: { qkv: false, gateUp: true },
    names: {
      ...llamaNames,
      attentionPostNorm: 'model.layers.N.post_self_attn_layernorm',
      mlpNorm: 'model.layers.N.post_attention_layernorm',
      mlpPostNorm: 'model.layers.N.post_mlp_layernorm',
    },
  }),
}
