import { UnslothError } from '#shared/errors.ts'
import type { GluKind } from '../../graph/ops/elementwise.ts'
import { llamaNames, type ArchSpec, type AttentionKind, type MoeSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import { ropeSpec } from '../rope.ts'

const activations: Readonly<Record<string, GluKind>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu_erf',
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
}

export function activationOf(config: Config, fallback = 'silu'): GluKind {
  const name = config.string('hidden_activation', 'hidden_act') ?? fallback
  const kind = activations[name]
  if (kind === undefined)
    throw new UnslothError('MODEL_UNSUPPORTED', `config.json: activation "${name}" is not supported.`, {
      hint: `Supported: ${Object.keys(activations).join(', ')}.`,
    })
  return kind
}

/** `layer_types` of the config, or what the family does when the key is absent. */
export function attentionKinds(config: Config, layers: number, absent: (layer: number) => AttentionKind): AttentionKind[] {
  const listed = config.strings('layer_types')
  if (listed === undefined) return Array.from({ length: layers }, (_, layer) => absent(layer))
  if (listed.length !== layers)
    throw new UnslothError('MODEL_INVALID', `config.json: "layer_types" has ${listed.length} entries for ${layers} layers.`)
  return listed.map((kind) => {
    if (kind === 'full_attention') return 'full'
    if (kind === 'sliding_attention') return 'window'
    throw new UnslothError('MODEL_UNSUPPORTED', `config.json: layer type "${kind}" is not supported.`)
  })
}

export interface FamilyDefaults {
  readonly architecture: string
  readonly normEps?: number
  readonly ropeTheta?: number
  /** head_dim when the key is absent; hidden / heads otherwise. */
  readonly headDim?: number
  readonly tied?: boolean
  readonly interleavedRope?: boolean
  /** Share of each head that is rotated when the config does not say. */
  readonly partialRotary?: number
  readonly ropeAliases?: Readonly<Record<string, string>>
  readonly window?: number
  readonly windowLayers?: (layer: number) => boolean
}

/**
 * What most families share: pre-norm blocks of RMS norm, grouped-query attention with rotary positions, and a gated MLP.
 * A family file starts from this and replaces what differs.
 */
export function llamaLike(config: Config, family: FamilyDefaults): ArchSpec {
  const layers = config.size('num_hidden_layers')
  const hidden = config.size('hidden_size')
  const heads = config.size('num_attention_heads')
  const kvHeads = config.number(heads, 'num_key_value_heads')
  const headDim = config.number(family.headDim ?? hidden / heads, 'head_dim')
  if (!Number.isInteger(headDim) || headDim < 2 || headDim % 2 !== 0)
    throw new UnslothError(
      'MODEL_INVALID',
      `config.json: hidden_size ${hidden} and num_attention_heads ${heads} give no even head size; "head_dim" is missing or odd.`,
    )
  if (!Number.isInteger(kvHeads) || kvHeads < 1 || heads % kvHeads !== 0)
    throw new UnslothError(
      'MODEL_INVALID',
      `config.json: num_attention_heads ${heads} is not a multiple of num_key_value_heads ${kvHeads}.`,
    )
  const context = config.number(2048, 'max_position_embeddings')
  const rope = {
    headDim,
    defaultTheta: family.ropeTheta ?? 10_000,
    context,
    interleaved: family.interleavedRope === true,
    partial: family.partialRotary ?? 1,
    aliases: { su: 'longrope', ...family.ropeAliases },
  }
  const full = ropeSpec(config, rope)
  const window = family.window ?? 0
  const kinds = attentionKinds(config, layers, (layer) =>
    window > 0 && (family.windowLayers?.(layer) ?? true) ? 'window' : 'full',
  )
  if (kinds.includes('window') && window === 0)
    throw new UnslothError('MODEL_INVALID', 'config.json: "layer_types" names sliding layers, but "sliding_window" is missing.')
  return {
    architecture: family.architecture,
    layers,
    hidden,
    heads,
    kvHeads,
    headDim,
    context,
    ffn: config.size('intermediate_size'),
    vocabulary: config.size('vocab_size'),
    norm: { kind: 'rms', eps: config.number(family.normEps ?? 1e-6, 'rms_norm_eps'), plusOne: false },
    block: 'pre',
    bias: { qkv: false, o: false, mlp: false },
    fused: { qkv: false, gateUp: false },
    activation: activationOf(config),
    attention: { scale: headDim ** -0.5, softcap: 0, window, kinds },
    rope: { full, window: full, layers: kinds },
    multiplier: { embedding: 1, embeddingRounds: false, residual: 1, logits: 1 },
    finalSoftcap: 0,
    tied: config.boolean(family.tied ?? false, 'tie_word_embeddings'),
    names: llamaNames,
  }
}

/**
 * A mixture of experts as the config gives it. The balance loss counts only when the config asks for the routers' logits, as in
 * transformers.
 */
export function mixture(config: Config, moe: Omit<MoeSpec, 'balance'>): MoeSpec {
  for (const [key, value] of [
    ['num_local_experts', moe.experts],
    ['num_experts_per_tok', moe.choices],
  ] as const)
    if (!Number.isInteger(value) || value < 1)
      throw new UnslothError('MODEL_INVALID', `config.json: "${key}" should be a positive integer, but is ${value}.`)
  if (moe.choices > moe.experts)
    throw new UnslothError(
      'MODEL_INVALID',
      `config.json: "num_experts_per_tok" is ${moe.choices}, but there are ${moe.experts} experts.`,
    )
  return { ...moe, balance: config.boolean(false, 'output_router_logits') ? config.number(1e-3, 'router_aux_loss_coef') : 0 }
}
