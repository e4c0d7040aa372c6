import { cpuTarget, roundsOn, type Target } from '../graph/target.ts'
import type { Golden, Quantity } from './golden.ts'
import { relativeError } from './relativeError.ts'
import { compareSixteenBits } from './sixteenBits.ts'
import { gpuTolerance, toleranceOf } from './tolerance.ts'

export type Verdict = 'ok' | 'wrong' | 'missing' | 'skipped'

export interface Comparison {
  readonly name: string
  readonly verdict: Verdict
  /** ‖ours − reference‖ / ‖reference‖; for curves the largest of any step; for token ids the count that differ. */
  readonly error: number
  readonly tolerance: number
}

function largestStepError(ours: Float32Array | Int32Array, reference: Float32Array): number {
  return reference.reduce(
    (worst, value, i) => Math.max(worst, ours[i] === value ? 0 : Math.abs(ours[i]! - value) / Math.abs(value)),
    0,
  )
}

const perStep = new Set(['curve_loss', 'curve_grad_norm', 'curve_lr'])

/** Compares everything the golden expects with what was computed for `target`. A NaN is never within tolerance. */
export async function compare(
  golden: Golden,
  computed: ReadonlyMap<string, Quantity>,
  skip: ReadonlySet<string>,
  target: Target = cpuTarget(),
): Promise<Comparison[]> {
  const rounding = roundsOn(target)
  if (rounding !== undefined) return compareSixteenBits(golden, computed, skip, rounding)
  const results: Comparison[] = []
  for (const name of golden.expected()) {
    const tolerance = toleranceOf(name, golden.quantised, target.kind === 'cuda' ? gpuTolerance : 0)
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
    const error = !sameSize
      ? Infinity
      : name === 'greedy_ids'
        ? reference.filter((id, i) => id !== ours.data[i]).length
        : perStep.has(name)
          ? largestStepError(ours.data, reference)
          : relativeError(ours.data, reference)
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
    const state =
      bad.length > 0
        ? bad.some(({ verdict }) => verdict === 'wrong')
          ? 'WRONG'
          : 'MISSING'
        : computed.length === 0
          ? 'skipped'
          : 'ok'
    const error = computed.length === 0 ? '-' : kind === 'greedy_ids' ? `${worst} differ` : worst.toExponential(1)
    return [kind, String(members.length), error, kind === 'greedy_ids' ? 'equal' : members[0]!.tolerance.toExponential(0), state]
  })
  const table = [['quantity', 'tensors', 'rel. error', 'allowed', ''], ...lines]
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)))
  const text = table.map((row) =>
    row
      .map((cell, column) => (column === 0 || column === 4 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .trimEnd(),
  )
  const details = results
    .filter(({ verdict }) => verdict === 'wrong' || verdict === 'missing')
    .slice(0, 20)
    .map(
      ({ name, verdict, error, tolerance }) =>
        `  ${name}: ${verdict === 'missing' ? 'was not computed' : `error ${error.toExponential(2)}, allowed ${tolerance.toExponential(0)}`}`,
    )
  return [...text, ...details]
}
