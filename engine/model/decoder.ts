import { slice, type Graph, type Tensor } from '../graph/graph.ts'
import { attention, rope, ropeTable, splitHeads, type SequenceLayout } from '../graph/ops/attention.ts'
import { activate, addRows, embed, gatherRows, glu, noise } from '../graph/ops/elementwise.ts'
import type { LoraGroup, Weight } from '../graph/ops/linear.ts'
import type { PrecisionCode } from '../graph/target.ts'
import { balanceLoss, newBalance, type Balance } from '../graph/ops/moe.ts'
import { norm } from '../graph/ops/norm.ts'
import { roundToBf16 } from '../graph/dtype.ts'
import type { ArchSpec, AttentionKind, NormSpec } from './archSpec.ts'
import { expertMixture } from './expertMixture.ts'
import { projection } from './projection.ts'

/** Weights and adapters by id; see weightTable. */
export interface DecoderWeights {
  weight(id: string): Weight
  /** The adapters on a linear weight, if any. */
  lora(id: string): LoraGroup | undefined
}

/** What changes from micro-step to micro-step, as device data. */
export interface DecoderInputs {
  readonly ids: Tensor
  readonly positions: Tensor
  /** Per kind of layer: which frequency table each token uses, the tables, and their factors. */
  readonly rope: Readonly<
    Record<AttentionKind, { readonly table: Tensor; readonly inverseFrequency: Tensor; readonly factor: Tensor }>
  >
  readonly layout: SequenceLayout
  readonly labelIndex: Tensor
  readonly randomness?: { readonly tokenKeys: Tensor; readonly random: Tensor }
  /** NEFTune: 1/√(tokens · width) of each token's sequence, and the factor on it. Needs `randomness`. */
  readonly noise?: { readonly scale: Tensor; readonly alpha: number }
  /** Where the routers' balance loss goes, and its factor in this micro-step. */
  readonly balance?: { readonly loss: Tensor; readonly weight: Tensor }
  /** Keys and values of earlier tokens, one pair of matrices per layer, and the rows where this step's tokens go. */
  readonly cache?: { readonly slots: Tensor; readonly layers: readonly { readonly k: Tensor; readonly v: Tensor }[] }
}

/** Everything up to the final norm, on the rows in `labelIndex`: [m, hidden]. */
export function decoder(
  graph: Graph,
  spec: ArchSpec,
  weights: DecoderWeights,
  inputs: DecoderInputs,
  precision: PrecisionCode,
): Tensor {
  graph.layer = -1
  const { embedding, embeddingRounds } = spec.multiplier
  let x = embed(
    graph,
    inputs.ids,
    weights.weight('embedding'),
    embeddingRounds && precision === 1 ? roundToBf16(embedding) : embedding,
  )
  if (spec.learnedPositions === true)
    x = addRows(graph, 'positioned', x, embed(graph, inputs.positions, weights.weight('positions'), 1, 'position'), 1, 'residual')
  // transformers adds the noise to what the embedding module gives: Gemma's has its factor inside, others are multiplied afterwards.
  if (inputs.noise !== undefined)
    x = noise(graph, x, { ...inputs.noise, alpha: inputs.noise.alpha * (embeddingRounds ? 1 : embedding) }, inputs.randomness!)
  const tables = new Map<AttentionKind, Tensor>()
  for (const kind of ['full', 'window'] as const) {
    const shared = kind === 'window' && spec.rope.window === spec.rope.full ? tables.get('full') : undefined
    if (
      !spec.rope.layers.includes(kind) &&
      !(kind === 'full' && spec.rope.window === spec.rope.full && spec.rope.layers.includes('window'))
    )
      continue
    tables.set(
      kind,
      shared ?? ropeTable(graph, `rope.${kind}`, spec.rope[kind].half, { positions: inputs.positions, ...inputs.rope[kind] }),
    )
  }
  const balance = inputs.balance === undefined ? undefined : newBalance(graph, spec.moe!.experts, inputs.balance.weight)
  const context: LayerContext = { graph, spec, weights, inputs, precision, tables, balance }
  for (let layer = 0; layer < spec.layers; ++layer) {
    graph.layer = layer
    x = decoderLayer(context, layer, x)
  }
  graph.layer = -1
  if (balance !== undefined) balanceLoss(graph, balance, spec.moe!.choices, inputs.balance!.loss)
  const rows = gatherRows(graph, x, inputs.labelIndex)
  return norm(
    graph,
    'finalNorm',
    rows,
    graph.activation('final', spec.hidden, { rule: 'labelled', keep: 'derived' }),
    normOptions(spec.norm, weights, 'finalNorm'),
  )
}

/** What every part of a layer needs. */
export interface LayerContext {
  readonly graph: Graph
  readonly spec: ArchSpec
  readonly weights: DecoderWeights
  readonly inputs: DecoderInputs
  readonly precision: PrecisionCode
  readonly tables: ReadonlyMap<AttentionKind, Tensor>
  readonly balance: Balance | undefined
}

const normOptions = (spec: NormSpec, weights: DecoderWeights, id: string, groups = 1) => ({
  kind: spec.kind,
  eps: spec.eps,
  plusOne: spec.plusOne,
  groups,
  ...(spec.bare === true ? {} : { weight: weights.weight(id) }),
  ...(spec.bias === true ? { bias: weights.weight(`${id}.bias`) } : {}),
})

function decoderLayer(c: LayerContext, layer: number, x: Tensor): Tensor {
  const { graph, spec } = c
  const { hidden } = spec
  const normed = (id: string, from: Tensor) =>
    norm(
      graph,
      id,
      from,
      graph.activation(`${id}.y`, hidden, { keep: 'derived' }),
      normOptions(spec.norm, c.weights, `layers.${layer}.${id}`),
    )
  /** A product back into the residual stream, with the residual added in the same pass where no norm stands between. */
  const into = (
    residual: Tensor,
    id: 'o' | 'down',
    product: (keep: 'residual' | 'attention', add?: Tensor) => Tensor,
  ): Tensor => {
    const keep = id === 'down' ? 'residual' : 'attention'
    if (spec.block !== 'prePost' && spec.block !== 'post') return product(keep, residual)
    const out = normed(id === 'o' ? 'attentionPostNorm' : 'mlpPostNorm', product('attention'))
    return addRows(graph, `${id}.residual`, residual, out, spec.multiplier.residual, keep)
  }

  const first = spec.block === 'post' ? x : normed('attentionNorm', x)
  const mixed = selfAttention(c, layer, first)
  const middle = into(x, 'o', (keep, add) => projection(c, layer, 'o', mixed, hidden, keep, add))
  const second =
    spec.block === 'parallel'
      ? first
      : spec.block === 'post'
        ? middle
        : normed('mlpNorm', spec.block === 'parallelNorms' ? x : middle)
  if (spec.moe?.layers[layer] === true)
    return into(middle, 'down', (keep, add) => expertMixture(c, spec.moe!, layer, second, keep, add))
  const h =
    spec.plainMlp === true
      ? activate(graph, projection(c, layer, 'up', second, spec.ffn, 'mlp'), spec.activation)
      : glu(graph, projection(c, layer, 'gateUp', second, 2 * spec.ffn, 'mlp'), spec.activation)
  return into(middle, 'down', (keep, add) => projection(c, layer, 'down', h, hidden, keep, add))
}

function selfAttention(c: LayerContext, layer: number, x: Tensor): Tensor {
  const { graph, spec, inputs } = c
  const { heads, kvHeads, headDim } = spec
  const qkv = projection(c, layer, 'qkv', x, (heads + 2 * kvHeads) * headDim, 'attention')
  const parts = splitHeads(qkv, heads, kvHeads, headDim)
  let { q, k } = parts
  const { v } = parts
  let rotated = slice(qkv, 0, (heads + kvHeads) * headDim)
  if (spec.qkNorm !== undefined) {
    const { over } = spec.qkNorm
    rotated = graph.activation('qk', (heads + kvHeads) * headDim, { keep: 'attention' })
    q = norm(
      graph,
      'qNorm',
      q,
      slice(rotated, 0, q.cols),
      normOptions(spec.qkNorm, c.weights, `layers.${layer}.qNorm`, over === 'head' ? heads : 1),
    )
    k = norm(
      graph,
      'kNorm',
      k,
      slice(rotated, q.cols, k.cols),
      normOptions(spec.qkNorm, c.weights, `layers.${layer}.kNorm`, over === 'head' ? kvHeads : 1),
    )
  }
  const kind = spec.rope.layers[layer]!
  if (kind !== 'none')
    rope(graph, rotated, c.tables.get(kind)!, { heads: heads + kvHeads, headDim, interleaved: spec.rope[kind].interleaved })
  const cache = inputs.cache?.layers[layer]
  if (cache !== undefined) {
    const { slots } = inputs.cache!
    graph.record(
      {
        commands: [
          [cache.k, k],
          [cache.v, v],
        ].map(([into, from]) => ({ name: 'storeRows', tensors: [into, from, slots], ints: [], floats: [] }) as const),
        outputs: [],
      },
      false,
    )
  }
  const window = spec.attention.kinds[layer] === 'window' ? spec.attention.window : 0
  return attention(graph, q, cache?.k ?? k, cache?.v ?? v, {
    heads,
    kvHeads,
    headDim,
    scale: spec.attention.scale,
    window,
    softcap: spec.attention.softcap,
    layout: inputs.layout,
  })
}
