/**
 * Relative error that a float32 run may have against the float64 reference; token ids have to be equal. References of quantised
 * models were computed by bitsandbytes on a GPU with activations in bf16: against those, what rounding them does.
 */
export function toleranceOf(name: string, rounded = false, least = 0): number {
  return Math.max(ownTolerance(name, rounded), name === 'greedy_ids' || /^(nf4_|q8_|dequant\.)/.test(name) ? 0 : least)
}

function ownTolerance(name: string, rounded: boolean): number {
  if (name === 'greedy_ids' || /^(nf4_|q8_|dequant\.)/.test(name)) return 0
  if (name.startsWith('adam8_')) return 2e-6 // bitsandbytes takes powers of β with a fast instruction
  if (rounded) return /^(lora_grad|curve_grad_norm)/.test(name) ? 2e-2 : name.endsWith('loss') ? 1e-3 : 1e-2
  if (/^(full_grad|lora_grad|dpo_grad|dropout_grad)/.test(name)) return 1e-4
  if (name.startsWith('curve_')) return 1e-4
  return 1e-5
}

/** fp32 on a GPU sums in another order, with faster functions: nothing has to be closer than this. */
export const gpuTolerance = 1e-4
