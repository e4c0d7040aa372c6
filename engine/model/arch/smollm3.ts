import { UnslothError } from '#shared/errors.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** SmolLM3: Llama without rotation in every fourth layer. */
export const smollm3: ArchitectureFamily = {
  architectures: ['SmolLM3ForCausalLM'],
  models: 'SmolLM 3',
  spec: (config) => {
    const window = config.boolean(false, 'use_sliding_window') ? config.number(0, 'sliding_window') : 0
    const base = llamaLike(config, { architecture: 'smollm3', ropeTheta: 2e6, tied: true, window })
    const every = config.number(4, 'no_rope_layer_interval')
    const rotates =
      config.numbers('no_rope_layers') ?? base.attention.kinds.map((_, layer) => ((layer + 1) % every === 0 ? 0 : 1))
    if (rotates.length !== base.layers)
      throw new UnslothError(
        'MODEL_INVALID',
        `config.json: "no_rope_layers" has ${rotates.length} entries for ${base.layers} layers.`,
      )
    const attention = config.boolean(false, 'attention_bias')
    return {
      ...base,
      bias: { qkv: attention, o: attention, mlp: config.boolean(false, 'mlp_bias') },
      rope: { ...base.rope, layers: base.attention.kinds.map((kind, layer) => (rotates[layer] === 0 ? 'none' : kind)) },
    }
  },
}
