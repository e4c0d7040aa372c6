import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Granite 3: Llama with factors on the embedding, on both branches, on the attention scores and on the logits. */
export const granite: ArchitectureFamily = {
  architectures: ['GraniteForCausalLM'],
  models: 'Granite 3, dense',
  spec: (config) => {
    const base = llamaLike(config, { architecture: 'granite' })
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
  },
}
