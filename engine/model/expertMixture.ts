import type { Tensor } from '../graph/graph.ts'
import { activate, glu } from '../graph/ops/elementwise.ts'
import { linear } from '../graph/ops/linear.ts'
import { combine, dispatch, expertLinear, route, scaleRows, weigh } from '../graph/ops/moe.ts'
import type { MoeSpec } from './archSpec.ts'
import type { LayerContext } from './decoder.ts'
import { projection } from './projection.ts'

/**
 * A sparse MLP: each token goes through its `choices` experts only, Σ w_e·down_e(act(gate_e x)⊙up_e x) [+ the shared expert] [+ add]. Rows are sorted by
 * expert first, so that each expert is one product over the rows it sees.
 */
export function expertMixture(
  c: LayerContext,
  moe: MoeSpec,
  layer: number,
  x: Tensor,
  keep: 'residual' | 'attention',
  add?: Tensor,
): Tensor {
  const { graph, spec, weights, precision } = c
  const id = (name: string) => `layers.${layer}.${name}`
  const lora = (name: string) => {
    const group = weights.lora(id(name))
    return group === undefined ? {} : { lora: group }
  }
  // Products with the router stay in fp32, as in transformers: near-ties between experts would flip.
  const logits = linear(graph, 'router', x, graph.activation('router', moe.experts, { keep: 'mlp', dtype: 'f32' }), {
    weight: weights.weight(id('router')),
    precision: 0,
  })
  const routing = route(graph, logits, {
    choices: moe.choices,
    renormalise: moe.renormalise,
    ...(c.balance === undefined ? {} : { balance: c.balance }),
  })
  const gateUp = expertLinear(graph, 'expertGateUp', dispatch(graph, x, routing), 2 * moe.ffn, {
    weight: weights.weight(id('expertGateUp')),
    ...lora('expertGateUp'),
    routing,
    precision,
  })
  const h = weigh(graph, glu(graph, gateUp, spec.activation), routing)
  const alpha = add === undefined ? 1 : spec.multiplier.residual
  const slots = expertLinear(graph, 'expertDown', h, spec.hidden, {
    weight: weights.weight(id('expertDown')),
    ...lora('expertDown'),
    routing,
    alpha,
    precision,
  })
  if (moe.sharedFfn === undefined) return combine(graph, 'down', slots, routing, keep, add)
  const routed = combine(graph, 'routed', slots, routing, 'attention', add)
  const factor = activate(graph, projection(c, layer, 'sharedFactor', x, 1, 'mlp'), 'sigmoid', 'factor')
  const shared = scaleRows(
    graph,
    'sharedWeighed',
    glu(graph, projection(c, layer, 'sharedGateUp', x, 2 * moe.sharedFfn, 'mlp'), spec.activation),
    factor,
  )
  return projection(c, layer, 'sharedDown', shared, spec.hidden, keep, routed)
}
