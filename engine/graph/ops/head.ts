import { gemm, type Weight } from './linear.ts'
import type { Command, Graph, Tensor } from '../graph.ts'
import { bytesPerElement, type DType } from '../dtype.ts'
import type { PrecisionCode } from '../target.ts'

export interface HeadOptions {
  readonly weight: Weight
  readonly bias?: Weight
  readonly logitScale: number
  readonly softcap: number
  readonly precision: PrecisionCode
}

/**
 * Rows of logits that are in memory at once: enough for the matrix product to run at full speed, few enough to stay small. A
 * processor needs a few hundred, a GPU (whose activations are 16-bit) a few thousand.
 */
export function headChunkRows(vocabulary: number, rows: number, type: DType = 'f32'): number {
  const budgetBytes = (type === 'f32' ? 256 : 300) * 2 ** 20
  const fit = Math.floor(budgetBytes / (bytesPerElement(type) * vocabulary))
  const unit = type === 'f32' ? 16 : 256
  return Math.max(1, Math.min(rows, Math.max(unit, fit - (fit % unit)), type === 'f32' ? 512 : 8192))
}

/**
 * Negative log-likelihood of each labelled row, and in the same visit the gradients of Σ weight·nll; see headLoss in commands.ts.
 * A training graph ends here: the node's backward has nothing left to emit, its forward already wrote the gradient of h.
 */
export function headLoss(
  graph: Graph,
  h: Tensor,
  inputs: { nll: Tensor; labels: Tensor; weights: Tensor },
  options: HeadOptions,
  training: boolean,
): void {
  const { weight, bias, logitScale, softcap, precision } = options
  const { matrix, fetch } = fetched(graph, weight)
  const vocabulary = weight.value.storage.rows
  const logits = graph.activation('logits', vocabulary, {
    rule: 'fixed',
    rows: headChunkRows(vocabulary, h.storage.rows, graph.activationType),
  })
  const command = (dh?: Tensor, dw?: Tensor, dBias?: Tensor) =>
    ({
      name: 'headLoss',
      tensors: [inputs.nll, dh, dw, logits, dBias, h, matrix, inputs.labels, inputs.weights, bias?.value],
      ints: [precision],
      floats: [logitScale, softcap],
    }) as const
  if (!training) {
    graph.record({ commands: [...fetch, command()], outputs: [logits] }, false)
    return
  }
  graph.record(
    {
      commands: [],
      outputs: [logits],
      backward: (b) => {
        const dh = graph.needsGradient(h) ? b.target(h).tensor : undefined
        for (const each of fetch) b.emit(each)
        b.emit(command(dh ?? b.scratch('d unused', h, h.cols), weight.grad, bias?.grad))
      },
    },
    true,
  )
}

/** The head where products can read it at full speed: one that lies in memory of the system is copied for as long as it is needed. */
function fetched(graph: Graph, { value }: Weight): { matrix: Tensor; fetch: readonly Command[] } {
  const { arena, rows, dtype } = value.storage
  if (arena !== 'hostWeights') return { matrix: value, fetch: [] }
  const matrix = graph.activation('head', value.cols, { rule: 'fixed', rows, dtype, keep: 'derived' })
  return {
    matrix,
    fetch: [
      { name: 'prefetch', tensors: [matrix, value], ints: [], floats: [] },
      { name: 'awaitCopy', tensors: [matrix], ints: [], floats: [] },
    ],
  }
}

/** logits [m, V] written to `out`: for generation and checks. */
export function headLogits(graph: Graph, h: Tensor, out: Tensor, options: HeadOptions): void {
  const { bias } = options
  if (bias !== undefined && (options.logitScale !== 1 || options.softcap !== 0))
    throw new Error('a head with a bias has neither factor nor softcap')
  const { matrix, fetch } = fetched(graph, options.weight)
  const commands = [...fetch, gemm(0, out, h, matrix, { precision: options.precision, bias: bias?.value })]
  if (options.logitScale !== 1 || options.softcap !== 0)
    commands.push({ name: 'logitCap', tensors: [out], ints: [], floats: [options.logitScale, options.softcap] })
  graph.record({ commands, outputs: [out] }, false)
}
