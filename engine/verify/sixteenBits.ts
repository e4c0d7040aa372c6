import type { Comparison } from './compare.ts'
import type { Golden, Quantity } from './golden.ts'
import { relativeError } from './relativeError.ts'
import errors from './sixteenBitErrors.json' with { type: 'json' }
import { gpuTolerance, toleranceOf } from './tolerance.ts'

/** Gradients (and what a few updates made of them) are judged over all matrices together, as HF's own error is given. */
const grouped = /^((?:lora_grad|full_grad|dpo_grad|dropout_grad|curve_final)(?:_row_norm)?)\./

/** What rounded activations have no part in. */
const untouched = /^(greedy_ids$|nf4_|q8_|adam8_|dequant\.|pissa\.|loftq\.|curve_lr$)/

/** What transformers and PEFT are off by in 16 bits, for each case and kind; written by test/golden/sixteenBits.py. */
const measured: Readonly<Record<string, Readonly<Record<'bf16' | 'f16', Readonly<Record<string, number>>>>>> = errors

/**
 * What a run may be off by: 1.5 times what HF itself is when it runs the case with such activations; logits 2 % and losses
 * 0.5 % at least in bf16, an eighth of that in fp16, which rounds to three bits more. TF32 rounds as fp16 does, in products
 * only. Of a case that was not measured here counts what it tells itself, as `bf16_error.KIND`. undefined: not judged, for
 * nobody measured HF.
 */
async function allowance(golden: Golden, kind: string, type: 'bf16' | 'f16' | 'tf32'): Promise<number | undefined> {
  if (untouched.test(kind)) return toleranceOf(kind, golden.quantised, gpuTolerance)
  const finer = type === 'bf16' ? 1 : 8
  const told = golden.has(`bf16_error.${kind}`) ? (await golden.floats(`bf16_error.${kind}`))[0]! / finer : undefined
  const own = measured[golden.name]?.[type === 'bf16' ? 'bf16' : 'f16'][kind] ?? told
  const least = (kind.endsWith('logits') ? 2e-2 : /(loss|logps|token_nll)$/.test(kind) ? 5e-3 : 0) / finer
  const allowed = Math.max(least, own === undefined ? 0 : 1.5 * own, golden.quantised ? toleranceOf(kind, true) : 0)
  return allowed === 0 ? undefined : allowed
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

/** Compares what was computed with 16-bit activations, or products in TF32; greedy tokens as `decidable` left them. */
export async function compareSixteenBits(
  golden: Golden,
  computed: ReadonlyMap<string, Quantity>,
  skip: ReadonlySet<string>,
  type: 'bf16' | 'f16' | 'tf32',
): Promise<Comparison[]> {
  const kinds = new Map<string, string[]>()
  for (const name of golden.expected()) {
    const kind = grouped.exec(name)?.[1] ?? name
    kinds.set(kind, [...(kinds.get(kind) ?? []), name])
  }
  const results: Comparison[] = []
  for (const [kind, names] of kinds) {
    const tolerance = await allowance(golden, kind, type)
    const ours = names.map((name) => computed.get(name)?.data)
    if (tolerance === undefined || skip.has(kind))
      results.push({ name: kind, verdict: 'skipped', error: NaN, tolerance: tolerance ?? NaN })
    else if (ours.includes(undefined)) results.push({ name: kind, verdict: 'missing', error: NaN, tolerance })
    else {
      const theirs = await Promise.all(names.map((name) => golden.floats(name)))
      const [a, b] = [joined(ours as Float32Array[]), joined(theirs)]
      const error =
        a.length !== b.length ? Infinity : kind === 'greedy_ids' ? b.filter((id, i) => id !== a[i]).length : relativeError(a, b)
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
export function decidable(
  ours: Int32Array,
  reference: Int32Array,
  prompt: number,
  logits: { exact: Float32Array; rounded: Float32Array },
): Int32Array {
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
