import type { Tensor } from '../graph/graph.ts'
import { doraLinear } from '../graph/ops/dora.ts'
import { linear } from '../graph/ops/linear.ts'
import type { LayerContext } from './decoder.ts'

/** x through one of a layer's linear weights, with its bias and adapters [+ add]. */
export function projection(
  c: LayerContext,
  layer: number,
  id: string,
  x: Tensor,
  width: number,
  keep: 'residual' | 'attention' | 'mlp',
  add?: Tensor,
): Tensor {
  const name = `layers.${layer}.${id}`
  const lora = c.weights.lora(name)
  const hasBias = id === 'qkv' ? c.spec.bias.qkv : id === 'o' ? c.spec.bias.o : c.spec.bias.mlp
  const alpha = add === undefined ? 1 : c.spec.multiplier.residual
  // Scaling a kept product again costs no other product: of what is scaled only the residual stream is kept.
  const dora = lora?.dora !== undefined
  const dropped = lora?.parts.some((part) => part.dropout !== undefined) === true
  const y = c.graph.activation(id, width, { keep: dora && !dropped && keep !== 'residual' ? 'derived' : keep })
  const options = {
    weight: c.weights.weight(name),
    ...(hasBias ? { bias: c.weights.weight(`${name}.bias`) } : {}),
    ...(add === undefined ? {} : { add }),
    ...(c.inputs.randomness === undefined ? {} : { randomness: c.inputs.randomness }),
    alpha,
    precision: c.precision,
  }
  if (dora) return doraLinear(c.graph, id, x, y, { ...options, lora, keep: keep === 'attention' ? 'attention' : 'mlp' })
  return linear(c.graph, id, x, y, { ...options, ...(lora === undefined ? {} : { lora }) })
}
