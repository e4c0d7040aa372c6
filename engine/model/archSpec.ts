import type { GluKind } from '../graph/ops/elementwise.ts'

/** Rotary embedding of one kind of layer: frequencies may depend on a sequence's length. Half = rotated dims / 2. */
export interface RopeSpec {
  /** The scaling that the config names: default, linear, dynamic, llama3, yarn, longrope. */
  readonly scaling: string
  readonly half: number
  readonly interleaved: boolean
  /** Frequencies and the factor on cos and sin for a sequence of `length` tokens; tables of equal `key` are the same. */
  table(length: number): RopeFrequencies
}

export interface RopeFrequencies {
  readonly key: string
  /** fp32 values, `half` of them. */
  readonly inverse: Float32Array
  readonly factor: number
}

export type AttentionKind = 'full' | 'window'

export interface NormSpec {
  readonly kind: 'rms' | 'layer'
  /** Only LayerNorm has one. */
  readonly bias?: boolean
  /** Neither weight nor bias (OLMo 1); only LayerNorm. */
  readonly bare?: boolean
  readonly eps: number
  readonly plusOne: boolean
}

/**
 * A decoder-only language model as data: everything in which architectures differ. The decoder builds the graph from it, the
 * weight table names and shapes the tensors from it.
 */
export interface ArchSpec {
  readonly architecture: string
  readonly layers: number
  readonly hidden: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly ffn: number
  readonly vocabulary: number
  /** Longest sequence the model was made for. */
  readonly context: number
  readonly norm: NormSpec
  /** Where the norms stand: before each half; before and after; only after; or halves in parallel, fed by one norm or by one each. */
  readonly block: 'pre' | 'prePost' | 'post' | 'parallel' | 'parallelNorms'
  readonly qkNorm?: NormSpec & { readonly over: 'head' | 'all'; readonly weightPerHead: boolean }
  readonly bias: { readonly qkv: boolean; readonly o: boolean; readonly mlp: boolean }
  /** How the checkpoint stores these projections: one matrix, or one each. */
  readonly fused: {
    readonly qkv: boolean
    /** Rows of a fused qkv stand by kv head: its q heads, its k, its v. */ readonly qkvByHead?: boolean
    readonly gateUp: boolean
  }
  readonly activation: GluKind
  /** An MLP of two matrices, down(act(up x)), in place of down(act(gate x)⊙up x). */
  readonly plainMlp?: boolean
  readonly attention: {
    readonly scale: number
    readonly softcap: number
    /** Keys seen by window layers: i − j < window. */
    readonly window: number
    readonly kinds: readonly AttentionKind[]
  }
  /** Per layer: which rope it uses, or none. */
  readonly rope: { readonly full: RopeSpec; readonly window: RopeSpec; readonly layers: readonly (AttentionKind | 'none')[] }
  readonly multiplier: {
    readonly embedding: number
    /** Whether the embedding's factor is rounded to the type that a run computes in (Gemma: √2560 is 50.5 in bf16). */
    readonly embeddingRounds: boolean
    readonly residual: number
    readonly logits: number
  }
  readonly finalSoftcap: number
  /** The head adds a bias to the logits. */
  readonly headBias?: boolean
  /** Positions are learned rows of a table, added to the embedding. */
  readonly learnedPositions?: boolean
  /** Matrices of the blocks are stored as [in, out]. */
  readonly transposed?: boolean
  readonly tied: boolean
  readonly moe?: MoeSpec
  readonly names: NameMap
}

/** Layers whose MLP is a sparse mixture of experts. */
export interface MoeSpec {
  readonly experts: number
  /** Experts that each token goes to. */
  readonly choices: number
  /** Width of one expert. */
  readonly ffn: number
  /** Whether the weights of a token's choices are made to add up to 1. */
  readonly renormalise: boolean
  readonly layers: readonly boolean[]
  /** Width of the expert that every token goes to besides, weighed by a gate of its own; none when absent. */
  readonly sharedFfn?: number
  /** Factor of the routers' balance loss in training; 0: none. */
  readonly balance: number
}

/**
 * Tensor names of a checkpoint; `N` in a layer name is replaced by the layer number, `E` by the expert's. Modules are names
 * without `.weight`.
 */
export interface NameMap {
  readonly embedding: string
  /** Beginning of the names that some files leave out (models saved without their head). */
  readonly optionalPrefix?: string
  readonly finalNorm: string
  readonly head: string
  /** Table of learned positions. */
  readonly positions: string
  readonly q: string
  readonly k: string
  readonly v: string
  readonly qkv: string
  readonly o: string
  readonly gate: string
  readonly up: string
  readonly gateUp: string
  readonly down: string
  readonly qNorm: string
  readonly kNorm: string
  /** Norm before attention, or the only one of a parallel block. */
  readonly attentionNorm: string
  readonly attentionPostNorm: string
  readonly mlpNorm: string
  readonly mlpPostNorm: string
  readonly router: string
  readonly expertGate: string
  readonly expertUp: string
  readonly expertDown: string
  readonly sharedGate: string
  readonly sharedUp: string
  readonly sharedDown: string
  /** The factor of the shared expert. */
  readonly sharedFactor: string
  /** Tensors of files that hold all experts of a layer in one, where a family has such. */
  readonly stackedExperts?: { readonly gateUp: string; readonly down: string }
  /** What transformers calls these in memory: in adapters, and in checkpoints saved without conversion. */
  readonly memory: {
    readonly router: string
    /** The head, when its name in files is another one. */
    readonly head?: string
    /** Parameters, not modules: all experts in one [E, out, in] tensor, gate and up together. */
    readonly expertGateUp: string
    readonly expertDown: string
  }
}

export const llamaNames: NameMap = {
  embedding: 'model.embed_tokens',
  finalNorm: 'model.norm',
  head: 'lm_head',
  positions: 'model.embed_positions',
  q: 'model.layers.N.self_attn.q_proj',
  k: 'model.layers.N.self_attn.k_proj',
  v: 'model.layers.N.self_attn.v_proj',
  qkv: 'model.layers.N.self_attn.qkv_proj',
  o: 'model.layers.N.self_attn.o_proj',
  gate: 'model.layers.N.mlp.gate_proj',
  up: 'model.layers.N.mlp.up_proj',
  gateUp: 'model.layers.N.mlp.gate_up_proj',
  down: 'model.layers.N.mlp.down_proj',
  qNorm: 'model.layers.N.self_attn.q_norm',
  kNorm: 'model.layers.N.self_attn.k_norm',
  attentionNorm: 'model.layers.N.input_layernorm',
  attentionPostNorm: 'model.layers.N.post_attention_layernorm',
  mlpNorm: 'model.layers.N.post_attention_layernorm',
  mlpPostNorm: 'model.layers.N.post_feedforward_layernorm',
  router: 'model.layers.N.mlp.gate',
  expertGate: 'model.layers.N.mlp.experts.E.gate_proj',
  expertUp: 'model.layers.N.mlp.experts.E.up_proj',
  expertDown: 'model.layers.N.mlp.experts.E.down_proj',
  sharedGate: 'model.layers.N.mlp.shared_expert.gate_proj',
  sharedUp: 'model.layers.N.mlp.shared_expert.up_proj',
  sharedDown: 'model.layers.N.mlp.shared_expert.down_proj',
  sharedFactor: 'model.layers.N.mlp.shared_expert_gate',
  memory: {
    router: 'model.layers.N.mlp.gate',
    expertGateUp: 'model.layers.N.mlp.experts.gate_up_proj',
    expertDown: 'model.layers.N.mlp.experts.down_proj',
  },
}

/** With norms before and after each half. `post_attention_layernorm` is the one on the attention's output then. */
export const prePostNames: NameMap = { ...llamaNames, mlpNorm: 'model.layers.N.pre_feedforward_layernorm' }
