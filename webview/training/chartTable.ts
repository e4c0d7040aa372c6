import { fill } from '#shared/panelStrings.ts'
import { h } from '../dom.ts'
import { nearestIndex, nearestValue } from './align.ts'
import type { ChartSurroundings } from './chart.ts'
import type { ChartSpec } from './chartSpecs.ts'
import type { ChartData } from './curves.ts'
import { factsOf } from './curves.ts'
import { formatPosition, formatValue } from './format.ts'

/** Rows of values in a chart's table. */
const sampleRows = 16

/** What a chart shows as a table: lowest, highest and last value of every curve, and values at even distances. */
export function chartTable(
  spec: ChartSpec,
  { curves, aligned }: ChartData,
  { strings, settings, range }: ChartSurroundings,
  labelOf: (index: number) => string,
): HTMLElement {
  const [x, ...columns] = aligned
  const text = (value: number | undefined): string => (value === undefined ? '–' : formatValue(value, spec.unit))
  const named = new Set(curves.map(({ run }) => run)).size > 1
  const heads = curves.map((curve, i) => `${named ? curve.run.info.name : ''} ${labelOf(i)}`.trim() || spec.title)
  const axis = { step: strings.step, epoch: strings.epoch, tokens: strings.axisTokens, time: strings.axisTime }[settings.xAxis]
  const row = (head: string, values: readonly string[]): HTMLElement =>
    h('tr', {}, h('th', { scope: 'row' }, head), ...values.map((value) => h('td', {}, value)))
  const facts = columns.map((values) => factsOf(x, values))
  const samples = new Set<number>()
  for (let i = 0; i < sampleRows; i++) {
    const at = nearestIndex(x, range.min + ((range.max - range.min) * i) / (sampleRows - 1))
    if (at >= 0) samples.add(at)
  }
  return h(
    'table',
    {},
    h('caption', {}, fill(strings.table, spec.title)),
    h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, axis), ...heads.map((head) => h('th', { scope: 'col' }, head)))),
    h(
      'tbody',
      {},
      row(
        strings.last,
        facts.map((fact) => text(fact?.last)),
      ),
      row(
        strings.lowest,
        facts.map((fact) => text(fact?.lowest)),
      ),
      row(
        strings.highest,
        facts.map((fact) => text(fact?.highest)),
      ),
      ...[...samples].map((at) =>
        row(
          formatPosition(x[at]!, settings.xAxis),
          columns.map((values) => {
            const near = nearestValue(values, at)
            return near < 0 ? '–' : text(values[near]!)
          }),
        ),
      ),
    ),
  )
}
