import { UnslothError } from '#shared/errors.ts'
import { llamaNames } from '../archSpec.ts'
import { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { activationOf, llamaLike } from './common.ts'

const layer = 'transformer.h.N'

/** GPT-2: learned positions, LayerNorm with bias, an MLP of two matrices; matrices stored as [in, out]. */
export const gpt2: ArchitectureFamily = {
  architectures: ['GPT2LMHeadModel'],
  models: 'GPT-2 from 124M to 1.5B, DistilGPT2',
  spec: (config) => {
    for (const key of ['scale_attn_by_inverse_layer_idx', 'add_cross_attention'])
      if (config.boolean(false, key))
        throw new UnslothError('MODEL_UNSUPPORTED', `config.json: GPT-2 with "${key}" is not supported.`)
    const hidden = config.size('n_embd', 'hidden_size')
    const renamed = {
      num_hidden_layers: config.size('n_layer', 'num_hidden_layers'),
      hidden_size: hidden,
      num_attention_heads: config.size('n_head', 'num_attention_heads'),
      num_key_value_heads: null,
      intermediate_size: config.number(4 * hidden, 'n_inner'),
      max_position_embeddings: config.number(1024, 'n_positions', 'n_ctx'),
      hidden_act: config.string('activation_function') ?? 'gelu_new',
    }
    const base = llamaLike(new Config({ ...config.values, ...renamed }), { architecture: 'gpt2', tied: true })
    return {
      ...base,
      activation: activationOf(new Config(renamed)),
      attention: { ...base.attention, scale: config.boolean(true, 'scale_attn_weights') ? base.attention.scale : 1 },
      norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_epsilon'), plusOne: false, bias: true },
      bias: { qkv: true, o: true, mlp: true },
      fused: { qkv: true, gateUp: false },
      plainMlp: true,
      learnedPositions: true,
      transposed: true,
      rope: { ...base.rope, layers: base.attention.kinds.map(() => 'none') },
      names: {
        ...llamaNames,
        optionalPrefix: 'transformer.',
        embedding: 'transformer.wte',
        positions: 'transformer.wpe',
        finalNorm: 'transformer.ln_f',
        qkv: `${layer}.attn.c_attn`,
        o: `${layer}.attn.c_proj`,
        up: `${layer}.mlp.c_fc`,
        down: `${layer}.mlp.c_proj`,
        attentionNorm: `${layer}.ln_1`,
        mlpNorm: `${layer}.ln_2`,
      },
    }
  },
}
