import { prePostNames, type ArchSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { ropeSpec } from '../rope.ts'
import { llamaLike, type FamilyDefaults } from './common.ts'

/** (1 + w) norms, an embedding scaled by √hidden and tied to the head, heads of 256, GELU in its tanh form. */
function gemmaLike(config: Config, family: FamilyDefaults): ArchSpec {
  const base = llamaLike(config, { headDim: 256, tied: true, ...family })
  const attention = config.boolean(false, 'attention_bias')
  return {
    ...base,
    // Configs of the first release say "gelu"; the models were trained with the tanh form.
    activation: 'gelu_tanh',
    bias: { qkv: attention, o: attention, mlp: false },
    norm: { ...base.norm, plusOne: true },
    multiplier: { embedding: Math.sqrt(base.hidden), embeddingRounds: true, residual: 1, logits: 1 },
  }
}

const scoreScale = (config: Config): number => config.number(256, 'query_pre_attn_scalar') ** -0.5

export const gemma: ArchitectureFamily = {
  architectures: ['GemmaForCausalLM'],
  models: 'Gemma 1, CodeGemma',
  spec: (config) => gemmaLike(config, { architecture: 'gemma' }),
}

/** Norms before and after each half, capped scores and logits, every other layer with a window. */
export const gemma2: ArchitectureFamily = {
  architectures: ['Gemma2ForCausalLM'],
  models: 'Gemma 2',
  spec: (config) => {
    const base = gemmaLike(config, {
      architecture: 'gemma2',
      window: config.number(4096, 'sliding_window'),
      windowLayers: (layer) => layer % 2 === 0,
    })
    return {
      ...base,
      block: 'prePost',
      attention: { ...base.attention, scale: scoreScale(config), softcap: config.nullableNumber(50, 'attn_logit_softcapping') },
      finalSoftcap: config.nullableNumber(30, 'final_logit_softcapping'),
      names: prePostNames,
    }
  },
}

/** Norm on each head of q and k, five window layers to one full layer, and another rope base in each kind. */
export const gemma3: ArchitectureFamily = {
  architectures: ['Gemma3ForCausalLM'],
  models: 'Gemma 3 270M and 1B, text',
  spec: (config) => {
    const every = config.number(6, 'sliding_window_pattern', '_sliding_window_pattern')
    const window = config.number(4096, 'sliding_window')
    const base = gemmaLike(config, {
      architecture: 'gemma3',
      ropeTheta: 1e6,
      window,
      windowLayers: (layer) => (layer + 1) % every !== 0,
    })
    const { headDim, context } = base
    return {
      ...base,
      block: 'prePost',
      qkNorm: { ...base.norm, over: 'head', weightPerHead: false },
      attention: { ...base.attention, scale: scoreScale(config), softcap: config.number(0, 'attn_logit_softcapping') },
      rope: {
        ...base.rope,
        window: ropeSpec(config, {
          headDim,
          context,
          defaultTheta: 1e4,
          layerType: 'sliding_attention',
          thetaKey: 'rope_local_base_freq',
        }),
      },
      finalSoftcap: config.number(0, 'final_logit_softcapping'),
      names: prePostNames,
    }
  },
}
