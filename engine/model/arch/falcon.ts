import { UnslothError } from '#shared/errors.ts'
import { llamaNames } from '../archSpec.ts'
import { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { activationOf, llamaLike } from './common.ts'

const layer = 'transformer.h.N'

/** Falcon: halves side by side, behind one LayerNorm (7B) or one each (40B, 180B, 11B has one); q, k and v in one matrix, by kv head. */
export const falcon: ArchitectureFamily = {
  architectures: ['FalconForCausalLM'],
  models: 'Falcon 7B, 40B, 180B and Falcon 2 11B',
  spec: (config) => {
    if (config.boolean(false, 'alibi'))
      throw new UnslothError('MODEL_UNSUPPORTED', 'config.json: Falcon with "alibi" (the RefinedWeb models) is not supported.')
    const grouped = config.boolean(false, 'new_decoder_architecture')
    const parallel = grouped || config.boolean(true, 'parallel_attn')
    const norms = config.number(grouped ? 2 : 1, 'num_ln_in_parallel_attn')
    const hidden = config.size('hidden_size')
    const heads = config.size('num_attention_heads')
    const oneKv = !grouped && config.boolean(true, 'multi_query')
    const renamed = {
      num_key_value_heads: grouped ? config.number(heads, 'num_kv_heads') : oneKv ? 1 : heads,
      intermediate_size: config.number(4 * hidden, 'ffn_hidden_size'),
      hidden_act: config.string('activation') ?? 'gelu',
    }
    const base = llamaLike(new Config({ ...config.values, ...renamed }), { architecture: 'falcon', tied: true })
    const bias = config.boolean(false, 'bias')
    const separate = grouped && norms === 2
    return {
      ...base,
      activation: activationOf(new Config(renamed)),
      norm: { kind: 'layer', eps: config.number(1e-5, 'layer_norm_epsilon'), plusOne: false, bias: true },
      block: !parallel ? 'pre' : separate ? 'parallelNorms' : 'parallel',
      bias: { qkv: bias, o: bias, mlp: bias },
      fused: { qkv: true, qkvByHead: true, gateUp: false },
      plainMlp: true,
      names: {
        ...llamaNames,
        optionalPrefix: 'transformer.',
        embedding: 'transformer.word_embeddings',
        finalNorm: 'transformer.ln_f',
        qkv: `${layer}.self_attention.query_key_value`,
        o: `${layer}.self_attention.dense`,
        up: `${layer}.mlp.dense_h_to_4h`,
        down: `${layer}.mlp.dense_4h_to_h`,
        attentionNorm: separate ? `${layer}.ln_attn` : `${layer}.input_layernorm`,
        mlpNorm: separate ? `${layer}.ln_mlp` : `${layer}.post_attention_layernorm`,
      },
    }
  },
}
