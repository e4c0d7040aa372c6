import type { Command } from '../graph/graph.ts'
import type { Weight } from '../graph/ops/linear.ts'
import type { Target } from '../graph/target.ts'
import { doraNorms } from './dora.ts'
import { parameterTensor, type ParameterLayout } from './parameters.ts'

/** The commands that round all trained matrices into their copies of another type; none where products take the masters. */
function shadowCast({ elements }: ParameterLayout, type: Target['parameters']): Command[] {
  if (type === 'f32' || elements === 0) return []
  const [copy, master] = [
    parameterTensor('shadow', 'shadow', 0, 1, elements, type),
    parameterTensor('params', 'params', 0, 1, elements),
  ]
  return [{ name: 'cast', tensors: [copy, master], ints: [], floats: [] }]
}

/** Everything that is made anew from the trained matrices after they changed: their rounded copies, and the norms and gains of DoRA. */
export const refreshCommands = (layout: ParameterLayout, frozen: ReadonlyMap<string, Weight>, target: Target): Command[] => [
  ...shadowCast(layout, target.parameters),
  ...doraNorms(layout, frozen, target),
]
