import { UnslothError } from '#shared/errors.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** StableLM: LayerNorm with bias, rotation of a quarter of each head. */
export const stablelm: ArchitectureFamily = {
  architectures: ['StableLmForCausalLM'],
  models: 'StableLM 3B, StableLM 2 1.6B, Stable Code',
  spec: (config) => {
    for (const key of ['qk_layernorm', 'use_parallel_residual'])
      if (config.boolean(false, key))
        throw new UnslothError('MODEL_UNSUPPORTED', `config.json: StableLM with "${key}" (the 12B model) is not supported.`)
    const base = llamaLike(config, { architecture: 'stablelm', partialRotary: 0.25 })
    return {
      ...base,
      norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_eps'), plusOne: false, bias: true },
      bias: { qkv: config.boolean(false, 'use_qkv_bias'), o: false, mlp: false },
    }
  },
}
