import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Llama 1 to 3.3 and everything published in its shape (TinyLlama, Yi, DeepSeek distillations, SmolLM). */
export const llama: ArchitectureFamily = {
  architectures: ['LlamaForCausalLM'],
  models: 'Llama 1 to 3.3, CodeLlama, TinyLlama, Yi, SmolLM 1 and 2, DeepSeek distillations',
  spec: (config) => {
    const attention = config.boolean(false, 'attention_bias')
    return {
      ...llamaLike(config, { architecture: 'llama' }),
      bias: { qkv: attention, o: attention, mlp: config.boolean(false, 'mlp_bias') },
    }
  },
}
