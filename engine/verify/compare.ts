import { cpuTarget, roundsOn, type Target } from '../graph/target.ts'
import type { Golden, Quantity } from './golden.ts'
import { relativeError } from './relativeError.ts'
import { compareSixteenBits } from './sixteenBits.ts'

export type Verdict = 'ok' | 'wrong' | 'missing' | 'skipped'

export interface Comparison {
  readonly name: string
  readonly verdict: Verdict
  /** ‖ours − reference‖ / ‖reference‖; for curves the largest of any step; for token ids the count that differ. */
  readonly error: number
  readonly tolerance: number
}

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

function largestStepError(ours: Float32Array | Int32Array, reference: Float32Array): number {
  return reference.reduce((worst, value, i) => Math.max(worst, ours[i] === value ? 0 : Math.abs(ours[i]! - value) / Math.abs(value)), 0)
}

const perStep = new Set(['curve_loss', 'curve_grad_norm', 'curve_lr'])

/** fp32 on a GPU sums in another order, with faster functions: nothing has to be closer than this. */
const gpuTolerance = 1e-4

/** Compares everything the golden expects with what was computed for `target`. A NaN is never within tolerance. */
export async function compare(
  golden: Golden, computed: ReadonlyMap<string, Quantity>, skip: ReadonlySet<string>, target: Target = cpuTarget(),
): Promise<Comparison[]> {
  const rounding = roundsOn(target)
  if (rounding !== undefined) return compareSixteenBits(golden, computed, skip, rounding)
  const results: Comparison[] = []
  for (const name of golden.expected()) {
    const tolerance = toleranceOf(name, golden.modelFolder !== golden.folder, target.kind === 'cuda' ? gpuTolerance : 0)
    const ours = computed.get(name)
    if (ours === undefined) {
      results.push({ name, verdict: skip.has(name) ? 'skipped' : 'missing', error: NaN, tolerance })
      continue
    }
    if (skip.has(name)) {
      results.push({ name, verdict: 'skipped', error: NaN, tolerance })
      continue
    }
    const reference = await golden.floats(name)
    const sameSize = ours.data.length === reference.length
    const error = !sameSize ? Infinity : name === 'greedy_ids' ? reference.filter((id, i) => id !== ours.data[i]).length : perStep.has(name) ? largestStepError(ours.data, reference) : relativeError(ours.data, reference)
    results.push({ name, verdict: error <= tolerance ? 'ok' : 'wrong', error, tolerance })
  }
  return results
}

/** One line for each kind of quantity (gradients of all layers together), the worst first within it. */
export function formatComparisons(results: readonly Comparison[]): string[] {
  const groups = new Map<string, Comparison[]>()
  for (const result of results) {
    const kind = result.name.replace(/\.model\..*|\.lm_head.*/, '')
    groups.set(kind, [...(groups.get(kind) ?? []), result])
  }
  const lines = [...groups].map(([kind, members]) => {
    const bad = members.filter(({ verdict }) => verdict === 'wrong' || verdict === 'missing')
    const computed = members.filter(({ verdict }) => verdict === 'ok' || verdict === 'wrong')
    const worst = computed.reduce((most, { error }) => (error > most || Number.isNaN(error) ? error : most), 0)
    const state = bad.length > 0 ? (bad.some(({ verdict }) => verdict === 'wrong') ? 'WRONG' : 'MISSING') : computed.length === 0 ? 'skipped' : 'ok'
    const error = computed.length === 0 ? '-' : kind === 'greedy_ids' ? `${worst} differ` : worst.toExponential(1)
    return [kind, String(members.length), error, kind === 'greedy_ids' ? 'equal' : members[0]!.tolerance.toExponential(0), state]
  })
  const table = [['quantity', 'tensors', 'rel. error', 'allowed', ''], ...lines]
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)))
  const text = table.map((row) => row.map((cell, column) => (column === 0 || column === 4 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!))).join('  ').trimEnd())
  const details = results.filter(({ verdict }) => verdict === 'wrong' || verdict === 'missing').slice(0, 20).map(({ name, verdict, error, tolerance }) => `  ${name}: ${verdict === 'missing' ? 'was not computed' : `error ${error.toExponential(2)}, allowed ${tolerance.toExponential(0)}`}`)
  return [...text, ...details]
}
