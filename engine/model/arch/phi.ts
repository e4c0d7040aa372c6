import { UnslothError } from '#shared/errors.ts'
import { llamaNames } from '../archSpec.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Phi 1 to 2: one LayerNorm before both halves, side by side; biases everywhere, the head included. */
export const phi: ArchitectureFamily = {
  architectures: ['PhiForCausalLM'],
  models: 'Phi 1, 1.5 and 2',
  spec: (config) => {
    if (config.boolean(false, 'qk_layernorm'))
      throw new UnslothError('MODEL_UNSUPPORTED', 'config.json: Phi with "qk_layernorm" is not supported.')
    return {
      ...llamaLike(config, { architecture: 'phi', partialRotary: 0.5 }),
      norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_eps'), plusOne: false, bias: true },
      block: 'parallel',
      bias: { qkv: true, o: true, mlp: true },
      plainMlp: true,
      headBias: true,
      names: {
        ...llamaNames,
        finalNorm: 'model.final_layernorm',
        o: 'model.layers.N.self_attn.dense',
        up: 'model.layers.N.mlp.fc1',
        down: 'model.layers.N.mlp.fc2',
      },
    }
  },
}
