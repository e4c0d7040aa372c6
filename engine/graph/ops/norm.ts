import type { Graph, Tensor } from '../graph.ts'
import type { Weight } from './linear.ts'

export interface NormOptions {
  readonly kind: 'rms' | 'layer'
  /** Only LayerNorm can do without. */
  readonly weight?: Weight
  readonly bias?: Weight
  readonly eps: number
  /** Multiply by 1 + w (Gemma). */
  readonly plusOne?: boolean
  /** Column groups that are normalised apart (heads). */
  readonly groups?: number
}

/** y = norm(x): rmsNorm or layerNorm; see commands.ts. `y` may be a slice of a wider buffer. */
export function norm(graph: Graph, name: string, x: Tensor, y: Tensor, options: NormOptions): Tensor {
  const { kind, weight, bias, eps } = options
  const groups = options.groups ?? 1
  const plusOne = options.plusOne === true ? 1 : 0
  const stats = graph.activation(`${name}.stats`, kind === 'rms' ? groups : 2 * groups, {
    rule: x.storage.rule,
    keep: y.storage.keep === 'derived' ? 'residual' : 'attention',
    dtype: 'f32',
  })
  const forward =
    kind === 'rms'
      ? ({ name: 'rmsNorm', tensors: [y, stats, x, weight?.value], ints: [groups, plusOne], floats: [eps] } as const)
      : ({ name: 'layerNorm', tensors: [y, stats, x, weight?.value, bias?.value], ints: [groups], floats: [eps] } as const)
  const trained = weight?.grad !== undefined || bias?.grad !== undefined
  graph.record(
    {
      commands: [forward],
      outputs: [y, stats],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        const needsInput = graph.needsGradient(x)
        if (!needsInput && !trained) return
        const { tensor: dx, accumulate } = needsInput
          ? b.target(x)
          : { tensor: b.scratch(`d ${name}.unused`, x, x.cols), accumulate: false }
        const inputs = [dy, b.value(x), weight?.value, b.value(stats)]
        if (kind === 'rms')
          b.emit({
            name: 'rmsNormGrad',
            tensors: [dx, weight?.grad, ...inputs],
            ints: [groups, plusOne, accumulate ? 1 : 0],
            floats: [],
          })
        else
          b.emit({
            name: 'layerNormGrad',
            tensors: [dx, weight?.grad, bias?.grad, ...inputs],
            ints: [groups, accumulate ? 1 : 0],
            floats: [],
          })
      },
    },
    trained || graph.needsGradient(x),
  )
  return y
}
