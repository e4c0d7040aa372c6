import type { ArchSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike, type FamilyDefaults } from './common.ts'

/** One LayerNorm without bias that feeds attention and MLP side by side, rotation of neighbouring columns, scaled logits. */
function cohereLike(config: Config, family: FamilyDefaults): ArchSpec {
  const base = llamaLike(config, { tied: true, interleavedRope: true, ...family })
  const attention = config.boolean(false, 'attention_bias')
  return {
    ...base,
    norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_eps'), plusOne: false },
    block: 'parallel',
    bias: { qkv: attention, o: attention, mlp: false },
    multiplier: { ...base.multiplier, logits: config.number(0.0625, 'logit_scale') },
  }
}

/** Command R; the plus model also normalises each head of q and k, with own weights for each head. */
export const cohere: ArchitectureFamily = {
  architectures: ['CohereForCausalLM'],
  models: 'Command R and R+, Aya',
  spec: (config) => {
    const base = cohereLike(config, { architecture: 'cohere', ropeTheta: 5e5 })
    return config.boolean(false, 'use_qk_norm') ? { ...base, qkNorm: { ...base.norm, over: 'head', weightPerHead: true } } : base
  },
}

/** Command R7B and A: three window layers with rotation to one full layer without. */
export const cohere2: ArchitectureFamily = {
  architectures: ['Cohere2ForCausalLM'],
  models: 'Command R7B, Command A',
  spec: (config) => {
    const every = config.number(4, 'sliding_window_pattern', '_sliding_window_pattern')
    const base = cohereLike(config, {
      architecture: 'cohere2',
      window: config.number(4096, 'sliding_window'),
      windowLayers: (layer) => (layer + 1) % every !== 0,
    })
    return {
      ...base,
      rope: { ...base.rope, layers: base.attention.kinds.map((kind) => (kind === 'window' ? 'window' : 'none')) },
    }
  },
}
