import { UnslothError } from '#shared/errors.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** OLMo 1: Llama with a LayerNorm that has neither weight nor bias. */
export const olmo: ArchitectureFamily = {
  architectures: ['OlmoForCausalLM'],
  models: 'OLMo 1B and 7B of 2024',
  spec: (config) => {
    if (config.has('clip_qkv'))
      throw new UnslothError('MODEL_UNSUPPORTED', 'config.json: "clip_qkv" (OLMo 7B of April 2024) is not supported.', {
        hint: 'OLMo 2 is.',
      })
    const attention = config.boolean(false, 'attention_bias')
    return {
      ...llamaLike(config, { architecture: 'olmo' }),
      norm: { kind: 'layer', eps: 1e-5, plusOne: false, bare: true },
      bias: { qkv: attention, o: attention, mlp: false },
    }
  },
}
