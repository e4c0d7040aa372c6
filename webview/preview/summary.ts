import type { PreviewStrings } from '#shared/previewPage.ts'
import { fill } from '#shared/panelStrings.ts'
import type { DataPreview } from '#shared/protocol.ts'
import { formatCount, formatPercent } from '#shared/units.ts'
import { h } from '../dom.ts'

/** What is known of the window's rows as a whole. */
export function summaryView(preview: DataPreview, strings: PreviewStrings): HTMLElement {
  const { format, reason, rows, samples, tokens, trainedTokens, lengths, packing } = preview
  const { shortest, longest, p50, p99 } = lengths
  const facts: readonly (readonly [string, string, string?])[] = [
    [strings.format, format, reason],
    [strings.rows, formatCount(rows.rows)],
    [strings.samples, formatCount(samples)],
    [strings.tokens, formatCount(tokens)],
    [strings.trained, formatPercent(trainedTokens / Math.max(1, tokens)), formatCount(trainedTokens)],
    [strings.lengths, fill(strings.lengthsText, ...[shortest, longest, p50, p99].map(formatCount))],
    [
      strings.packing,
      fill(strings.packingText, formatCount(packing.rows), formatCount(packing.rowTokens), formatPercent(packing.efficiency)),
    ],
  ]
  return h(
    'div',
    { class: 'summary' },
    h(
      'dl',
      { class: 'facts' },
      ...facts.map(([label, value, title]) => h('div', { class: 'fact' }, h('dt', {}, label), h('dd', { title }, value))),
    ),
    histogram(preview, strings),
  )
}

function histogram({ lengths }: DataPreview, strings: PreviewStrings): HTMLElement {
  const most = Math.max(1, ...lengths.histogram.map(({ samples }) => samples))
  const bars = lengths.histogram.map(({ from, to, samples }) => {
    const bar = h('span', {})
    bar.style.height = `${samples === 0 ? 0 : Math.max(4, (100 * samples) / most)}%`
    return h(
      'span',
      { class: 'bin', title: fill(strings.histogramBar, formatCount(from), formatCount(to), formatCount(samples)) },
      bar,
    )
  })
  const label = `${strings.histogram}. ${fill(strings.lengthsText, ...[lengths.shortest, lengths.longest, lengths.p50, lengths.p99].map(formatCount))}`
  return h('div', { class: 'histogram', role: 'img', 'aria-label': label }, ...bars)
}
