import { commandSignatures } from '../graph/commands.ts'
import { bytesPerElement } from '../graph/dtype.ts'
import type { Command } from '../graph/graph.ts'
import type { PatchedModel } from '../runtime/patchedModel.ts'

/**
 * Floating-point operations of one LoRA training step on one sequence of `tokens` tokens, all labelled, nothing recomputed:
 * forward 2·P_lin + 2·V·h + attention + 2·P_lora per token, backward 2·P_lin + 2·V·h (the base is frozen) + 2.5·attention + 4·P_lora;
 * causal attention 2·tokens·heads·headDim per token and layer. A full fine-tune adds the weight gradients.
 */
export function stepFlops(patched: PatchedModel, tokens: number): number {
  const { spec, entries } = patched.model
  const linear = entries.filter(({ kind }) => kind === 'linear').reduce((sum, { rows, cols }) => sum + rows * cols, 0)
  const head = spec.vocabulary * spec.hidden
  const lora = patched.modules.reduce((sum, { rank, width, inputs }) => sum + rank * (width + inputs), 0)
  const attention = 2 * tokens * spec.heads * spec.headDim * spec.layers
  const forward = 2 * linear + 2 * head + attention + 2 * lora
  const weightGradients = patched.training.kind === 'full' ? 2 * linear + 2 * head : 0
  const backward = 2 * linear + 2 * head + 2.5 * attention + 4 * lora + weightGradients
  return (forward + backward) * tokens
}

/** Operand bytes of a command at the plan's capacity. */
export function commandBytes({ tensors }: Command): number {
  return tensors.reduce(
    (sum, tensor) => sum + (tensor === undefined ? 0 : tensor.storage.rows * tensor.cols * bytesPerElement(tensor.storage.dtype)),
    0,
  )
}

/** Floating-point operations of a command at the plan's capacity; 0 where nothing but memory counts. */
export function commandFlops({ name, tensors, ints }: Command): number {
  const at = (operand: string) => tensors[commandSignatures[name].tensors.indexOf(operand)]!
  switch (name) {
    case 'gemm': {
      const [c, a] = [tensors[0]!, tensors[1]!]
      const inner = ints[0] === 2 ? a.storage.rows : a.cols
      const rows = ints[0] === 2 ? a.cols : a.storage.rows
      const lowRank = tensors
        .slice(5)
        .reduce(
          (sum, tensor, index) =>
            index % 2 === 0 ? sum + 2 * rows * tensor!.cols * (ints[0] === 0 ? tensors[6 + index]!.storage.rows : c.cols) : sum,
          0,
        )
      return 2 * rows * c.cols * inner + lowRank
    }
    case 'loraGrad':
      return 4 * at('dY').storage.rows * at('b').storage.rows * at('b').cols
    case 'attention':
      return 2 * at('q').storage.rows ** 2 * at('q').cols
    case 'attentionGrad':
      return 5 * at('q').storage.rows ** 2 * at('q').cols
    case 'headLoss':
      return (tensors[1] === undefined ? 2 : 4) * at('h').storage.rows * at('w').storage.rows * at('w').cols
    default:
      return 0
  }
}
