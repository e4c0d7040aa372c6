import { llamaNames } from '../archSpec.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { activationOf, llamaLike } from './common.ts'

/** StarCoder2: LayerNorm with bias, an MLP of two matrices, biases everywhere. */
export const starcoder2: ArchitectureFamily = {
  architectures: ['Starcoder2ForCausalLM'],
  models: 'StarCoder2 3B, 7B and 15B',
  spec: (config) => {
    const base = llamaLike(config, { architecture: 'starcoder2', tied: true, window: config.number(0, 'sliding_window') })
    const bias = config.boolean(true, 'use_bias')
    return {
      ...base,
      norm: { kind: 'layer', eps: config.number(1e-5, 'norm_epsilon'), plusOne: false, bias: true },
      bias: { qkv: bias, o: bias, mlp: bias },
      activation: activationOf(config, 'gelu_pytorch_tanh'),
      plainMlp: true,
      names: { ...llamaNames, up: 'model.layers.N.mlp.c_fc', down: 'model.layers.N.mlp.c_proj' },
    }
  },
}
