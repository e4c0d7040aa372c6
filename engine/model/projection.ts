import type { Tensor } from '../graph/graph.ts'
import { linear } from '../graph/ops/linear.ts'
import type { LayerContext } from './decoder.ts'

/** x through one of a layer's linear weights, with its bias and adapters [+ add]. */
export function projection(c: LayerContext, layer: number, id: string, x: Tensor, width: number, keep: 'residual' | 'attention' | 'mlp', add?: Tensor): Tensor {
  const name = `layers.${layer}.${id}`
  const lora = c.weights.lora(name)
  const hasBias = id === 'qkv' ? c.spec.bias.qkv : id === 'o' ? c.spec.bias.o : c.spec.bias.mlp
  const alpha = add === undefined ? 1 : c.spec.multiplier.residual
  return linear(c.graph, id, x, c.graph.activation(id, width, { keep }), {
    weight: c.weights.weight(name),
    ...(hasBias ? { bias: c.weights.weight(`${name}.bias`) } : {}),
    ...(lora === undefined ? {} : { lora }),
    ...(add === undefined ? {} : { add }),
    ...(c.inputs.randomness === undefined ? {} : { randomness: c.inputs.randomness }),
    alpha,
    precision: c.precision,
  })
}
