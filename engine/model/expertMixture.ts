import type { Tensor } from '../graph/graph.ts'
import { glu } from '../graph/ops/elementwise.ts'
import { linear } from '../graph/ops/linear.ts'
import { combine, dispatch, expertLinear, route, weigh } from '../graph/ops/moe.ts'
import type { MoeSpec } from './archSpec.ts'
import type { LayerContext } from './decoder.ts'

/**
 * A sparse MLP: each token goes through its `choices` experts only, Σ w_e·down_e(act(gate_e x)⊙up_e x) [+ add]. Rows are sorted by
 * expert first, so that each expert is one product over the rows it sees.
 */
export function expertMixture(c: LayerContext, moe: MoeSpec, layer: number, x: Tensor, keep: 'residual' | 'attention', add?: Tensor): Tensor {
  const { graph, spec, weights, precision } = c
  const id = (name: string) => `layers.${layer}.${name}`
  const lora = (name: string) => {
    const group = weights.lora(id(name))
    return group === undefined ? {} : { lora: group }
  }
  // Products with the router stay in fp32, as in transformers: near-ties between experts would flip.
  const logits = linear(graph, 'router', x, graph.activation('router', moe.experts, { keep: 'mlp' }), { weight: weights.weight(id('router')), precision: 0 })
  const routing = route(graph, logits, { choices: moe.choices, renormalise: moe.renormalise, ...(c.balance === undefined ? {} : { balance: c.balance }) })
  const gateUp = expertLinear(graph, 'expertGateUp', dispatch(graph, x, routing), 2 * moe.ffn, { weight: weights.weight(id('expertGateUp')), ...lora('expertGateUp'), routing, precision })
  const h = weigh(graph, glu(graph, gateUp, spec.activation), routing)
  const alpha = add === undefined ? 1 : spec.multiplier.residual
  const slots = expertLinear(graph, 'expertDown', h, spec.hidden, { weight: weights.weight(id('expertDown')), ...lora('expertDown'), routing, alpha, precision })
  return combine(graph, 'down', slots, routing, keep, add)
}
