import type { ArchSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { ropeSpec } from '../rope.ts'
import { llamaLike, type FamilyDefaults } from './common.ts'

/** Norms only after each half, and one over all heads of q and of k. */
function olmoLike(config: Config, family: FamilyDefaults): ArchSpec {
  const base = llamaLike(config, { normEps: 1e-5, ...family })
  const attention = config.boolean(false, 'attention_bias')
  return {
    ...base,
    block: 'post',
    bias: { qkv: attention, o: attention, mlp: false },
    qkNorm: { ...base.norm, over: 'all', weightPerHead: false },
  }
}

export const olmo2: ArchitectureFamily = {
  architectures: ['Olmo2ForCausalLM'],
  models: 'OLMo 2',
  spec: (config) => olmoLike(config, { architecture: 'olmo2' }),
}

/** Three window layers to one full layer; scaled frequencies are for the full ones only. */
export const olmo3: ArchitectureFamily = {
  architectures: ['Olmo3ForCausalLM'],
  models: 'OLMo 3',
  spec: (config) => {
    const base = olmoLike(config, {
      architecture: 'olmo3',
      window: config.number(4096, 'sliding_window'),
      windowLayers: (layer) => (layer + 1) % 4 !== 0,
    })
    const { headDim, context } = base
    const theta = config.number(5e5, 'rope_theta')
    return {
      ...base,
      rope: {
        ...base.rope,
        window: ropeSpec(config, {
          headDim,
          context,
          defaultTheta: theta,
          layerType: 'sliding_attention',
          thetaKey: 'rope_theta',
        }),
      },
    }
  },
}
