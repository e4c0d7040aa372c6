import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** OLMo 2: norms only after each half, and one over all heads of q and of k. */
export const olmo2: ArchitectureFamily = {
  architectures: ['Olmo2ForCausalLM'],
  models: 'OLMo 2',
  spec: (config) => {
    const base = llamaLike(config, { architecture: 'olmo2', normEps: 1e-5 })
    const attention = config.boolean(false, 'attention_bias')
    return { ...base, block: 'post', bias: { qkv: attention, o: attention, mlp: false }, qkNorm: { ...base.norm, over: 'all', weightPerHead: false } }
  },
}
