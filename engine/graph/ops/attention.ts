import { slice, type Graph, type Tensor } from '../graph.ts'

/** Per-token rotation angles of one kind of layer; see ropeTable in commands.ts. */
export function ropeTable(
  graph: Graph,
  name: string,
  half: number,
  inputs: { positions: Tensor; table: Tensor; inverseFrequency: Tensor; factor: Tensor },
): Tensor {
  const cosSin = graph.activation(name, 2 * half, { keep: 'residual', dtype: 'f32' })
  graph.record(
    {
      commands: [
        {
          name: 'ropeTable',
          tensors: [cosSin, inputs.positions, inputs.table, inputs.inverseFrequency, inputs.factor],
          ints: [],
          floats: [],
        },
      ],
      outputs: [cosSin],
    },
    false,
  )
  return cosSin
}

/** Rotates heads in place. Nothing may depend on the value before the rotation. */
export function rope(
  graph: Graph,
  x: Tensor,
  cosSin: Tensor,
  options: { heads: number; headDim: number; interleaved: boolean },
): void {
  const ints = (inverse: 0 | 1) => [options.heads, options.headDim, options.interleaved ? 1 : 0, inverse]
  graph.record(
    {
      commands: [{ name: 'rope', tensors: [x, x, cosSin], ints: ints(0), floats: [] }],
      outputs: [x],
      backward: (b) => {
        const dx = b.gradientOf(x)
        if (dx !== undefined) b.emit({ name: 'rope', tensors: [dx, dx, b.value(cosSin)], ints: ints(1), floats: [] })
      },
    },
    graph.needsGradient(x),
  )
}

export interface AttentionOptions {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly scale: number
  /** Keys further back than this are not seen; 0: all are. */
  readonly window: number
  /** 0: none. */
  readonly softcap: number
  readonly layout: SequenceLayout
}

/** Where each packed sequence's queries and keys stand; see attention in commands.ts. */
export interface SequenceLayout {
  readonly qStart: Tensor
  readonly kvStart: Tensor
  readonly kvLength: Tensor
}

/** o [n, heads·headDim] from q, k, v (any of them may be slices, k and v may be a cache). */
export function attention(graph: Graph, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
  const { heads, kvHeads, headDim, scale, window, softcap, layout } = options
  const o = graph.activation('attended', heads * headDim, { keep: 'attended' })
  const lse = graph.activation('lse', heads, { keep: 'attended', dtype: 'f32' })
  const ints = [heads, kvHeads, window]
  const floats = [scale, softcap]
  const where = [layout.qStart, layout.kvStart, layout.kvLength]
  graph.record(
    {
      commands: [{ name: 'attention', tensors: [o, lse, q, k, v, ...where], ints, floats }],
      outputs: [o, lse],
      backward: (b) => {
        const dO = b.gradientOf(o)
        if (dO === undefined) return
        const targets = [q, k, v].map((input) => {
          const { tensor, accumulate } = b.target(input)
          if (accumulate) throw new Error('attention is the only consumer of q, k and v')
          return tensor
        })
        const delta = b.scratch('delta', lse, heads)
        b.emit({
          name: 'attentionGrad',
          tensors: [...targets, delta, dO, b.value(o), b.value(lse), b.value(q), b.value(k), b.value(v), ...where],
          ints,
          floats,
        })
      },
    },
    graph.needsGradient(q),
  )
  return o
}

/** Splits a fused [n, (heads + 2·kvHeads)·headDim] buffer into q, k and v. */
export function splitHeads(qkv: Tensor, heads: number, kvHeads: number, headDim: number): { q: Tensor; k: Tensor; v: Tensor } {
  return {
    q: slice(qkv, 0, heads * headDim),
    k: slice(qkv, heads * headDim, kvHeads * headDim),
    v: slice(qkv, (heads + kvHeads) * headDim, kvHeads * headDim),
  }
}
