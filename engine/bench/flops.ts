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
