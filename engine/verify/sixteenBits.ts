import type { Comparison } from './compare.ts'
import type { Golden, Quantity } from './golden.ts'
import { relativeError } from './relativeError.ts'

/** Gradients (and what a few updates made of them) are judged over all matrices together, as the reference's own error is given. */
const grouped = /^(lora_grad|lora_grad_row_norm|full_grad|full_grad_row_norm|dpo_grad|curve_final)\./

/**
 * What a run with activations in bf16 may be off by: logits 2 %, losses 0.5 %, losses along a curve 2 %, gradients 1.5 times what HF
 * itself is off by when it runs the case in bfloat16. Preference losses are differences of near-equal numbers, and models after
 * training differ in their weights too (and, where a router is near a tie, in an expert): wider. undefined: not judged; after a few
 * updates by AdamW, which divides by √v, the sign of a tiny gradient decides. In fp16 and TF32, `finer` of all that.
 */
function toleranceOf(kind: string, reference: number, finer: number): number | undefined {
  if (/^(nf4_|q8_|dequant\.|adam8_)/.test(kind)) return kind.startsWith('adam8_') ? 2e-6 : 0
  if (kind === 'curve_final') return undefined
  if (kind === 'curve_lr') return 1e-5
  return finer * inBfloat16(kind, reference)
}

function inBfloat16(kind: string, reference: number): number {
  if (kind === 'curve_final_logits' || kind === 'merged_logits') return 5e-2
  if (kind === 'dpo_loss') return 1e-2
  if (kind === 'dpo_grad') return 3 * reference
  if (kind === 'curve_loss' || /logits$|token_nll$/.test(kind)) return 2e-2
  if (/loss$|logps$/.test(kind)) return 5e-3
  return 1.5 * reference
}

function joined(parts: readonly (Float32Array | Int32Array)[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/** Compares what was computed with 16-bit activations, or products in TF32; greedy tokens are compared as `decidable` left them. */
export async function compareSixteenBits(
  golden: Golden, computed: ReadonlyMap<string, Quantity>, skip: ReadonlySet<string>, type: 'bf16' | 'f16' | 'tf32',
): Promise<Comparison[]> {
  // fp16 and TF32 round to 11 bits where bf16 rounds to 8: transformers' own errors in fp16 are 1/8 of those in bf16, along curves too.
  const finer = type === 'bf16' ? 1 : 1 / 8
  const reference = golden.has('bf16_error.lora_grad') ? (await golden.floats('bf16_error.lora_grad'))[0]! : 2e-2
  const kinds = new Map<string, string[]>()
  for (const name of golden.expected()) {
    const kind = grouped.exec(name)?.[1] ?? name
    kinds.set(kind, [...(kinds.get(kind) ?? []), name])
  }
  const results: Comparison[] = []
  for (const [kind, names] of kinds) {
    const tolerance = kind === 'greedy_ids' ? 0 : toleranceOf(kind, reference, finer)
    const ours = names.map((name) => computed.get(name)?.data)
    if (tolerance === undefined || skip.has(kind)) results.push({ name: kind, verdict: 'skipped', error: NaN, tolerance: tolerance ?? NaN })
    else if (ours.includes(undefined)) results.push({ name: kind, verdict: 'missing', error: NaN, tolerance })
    else {
      const theirs = await Promise.all(names.map((name) => golden.floats(name)))
      const [a, b] = [joined(ours as Float32Array[]), joined(theirs)]
      const error = a.length !== b.length ? Infinity : kind === 'greedy_ids' ? b.filter((id, i) => id !== a[i]).length : relativeError(a, b)
      results.push({ name: kind, verdict: error <= tolerance ? 'ok' : 'wrong', error, tolerance })
    }
  }
  return results
}

/**
 * Greedy tokens with those replaced by the reference's that 16 bits cannot decide: from the first position on where the two best
 * logits in fp32 are closer than twice the largest error of the 16-bit logits. Both logits are of the reference's own tokens,
 * [tokens, vocabulary].
 */
export function decidable(ours: Int32Array, reference: Int32Array, prompt: number, logits: { exact: Float32Array; rounded: Float32Array }): Int32Array {
  const vocabulary = logits.exact.length / reference.length
  for (let at = prompt; at < reference.length; ++at) {
    const row = (values: Float32Array) => values.subarray((at - 1) * vocabulary, at * vocabulary)
    const [exact, rounded] = [row(logits.exact), row(logits.rounded)]
    const [first, second] = [...exact].sort((a, b) => b - a)
    const error = exact.reduce((most, value, i) => Math.max(most, Math.abs(value - rounded[i]!)), 0)
    if (first! - second! <= 2 * error) return Int32Array.from([...ours.subarray(0, at), ...reference.subarray(at)])
  }
  return ours
}
