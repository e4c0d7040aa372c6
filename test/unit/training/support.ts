import type { EventRecord, MetricBatch, MetricColumns } from '#shared/metrics.ts'

const noRows: MetricColumns = { length: 0, columns: { step: new Float64Array(0) } }

/** Columns of a table from plain lists. */
export function columns(
  lists: Readonly<Record<string, readonly number[]>> & { readonly step: readonly number[] },
): MetricColumns {
  const entries = Object.entries(lists).map(([key, list]) => [key, Float64Array.from(list)] as const)
  return { length: lists.step.length, columns: { ...Object.fromEntries(entries), step: Float64Array.from(lists.step) } }
}

/** A batch as the reader of metrics.jsonl gives it. */
export function batch(parts: {
  readonly steps?: Parameters<typeof columns>[0]
  readonly evals?: Parameters<typeof columns>[0]
  readonly events?: readonly EventRecord[]
}): MetricBatch {
  return {
    steps: parts.steps === undefined ? noRows : columns(parts.steps),
    evals: parts.evals === undefined ? noRows : columns(parts.evals),
    events: parts.events ?? [],
    invalid: 0,
  }
}

/** Steps 1 to `count` with a noisy loss, beginning after `first`. */
export function lossBatch(count: number, first = 0): MetricBatch {
  const step = Array.from({ length: count }, (_, i) => first + i + 1)
  return batch({
    steps: {
      step,
      loss: step.map((s) => 2 + Math.sin(s * 12.9898)),
      learning_rate: step.map((s) => 1e-4 / s),
      num_tokens: step.map((s) => s * 512),
      epoch: step.map((s) => s / 100),
      time: step.map((s) => 1_000_000 + s * 500),
    },
  })
}
