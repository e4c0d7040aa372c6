import type { Command } from '../graph/graph.ts'
import type { Target } from '../graph/target.ts'
import { parameterTensor, type ParameterLayout } from './parameters.ts'

/** The commands that round all trained matrices into their copies of another type; none where products take the masters. */
export function shadowCast({ elements }: ParameterLayout, type: Target['parameters']): Command[] {
  if (type === 'f32' || elements === 0) return []
  const [copy, master] = [parameterTensor('shadow', 'shadow', 0, 1, elements, type), parameterTensor('params', 'params', 0, 1, elements)]
  return [{ name: 'cast', tensors: [copy, master], ints: [], floats: [] }]
}
