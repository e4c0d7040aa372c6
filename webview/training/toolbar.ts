import type { ClipMode, PanelSettings, XAxis } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { button, checkbox, dropdown, iconButton, slider } from '../controls.ts'
import { h } from '../dom.ts'
import { formatWeight, positionOfWeight, weightOfPosition } from './format.ts'

export interface ToolbarOptions {
  readonly strings: PanelStrings
  readonly change: (settings: Partial<PanelSettings>) => void
  readonly resetZoom: () => void
  readonly addRuns: () => void
  readonly exportPng: () => void
  readonly exportCsv: () => void
}

export interface Toolbar {
  readonly element: HTMLElement
  show(settings: PanelSettings, isZoomed: boolean): void
}

/** The controls above the charts. */
export function createToolbar(
  { strings, change, resetZoom, addRuns, exportPng, exportCsv }: ToolbarOptions,
  settings: PanelSettings,
): Toolbar {
  const axes: readonly (readonly [XAxis, string])[] = [
    ['step', strings.axisStep],
    ['epoch', strings.axisEpoch],
    ['tokens', strings.axisTokens],
    ['time', strings.axisTime],
  ]
  const clips: readonly (readonly [ClipMode, string])[] = [
    ['none', strings.clipNone],
    ['p99', strings.clipP99],
    ['p95', strings.clipP95],
  ]
  const xAxis = dropdown(strings.xAxis, axes, settings.xAxis, (value) => change({ xAxis: value }))
  const clip = dropdown(strings.clip, clips, settings.clip, (value) => change({ clip: value }))
  const smoothing = slider(strings.smoothing, (position) => change({ smoothing: weightOfPosition(position) }))
  const raw = checkbox(strings.raw, settings.raw, (value) => change({ raw: value }))
  const logScale = checkbox(strings.logScale, settings.logScale, (value) => change({ logScale: value }))
  const marks = checkbox(strings.marks, settings.marks, (value) => change({ marks: value }))
  const tables = checkbox(strings.tables, settings.tables, (value) => change({ tables: value }))
  const reset = iconButton({ label: `${strings.resetZoom}. ${strings.zoomHint}`, icon: 'screen-normal', onClick: resetZoom })
  const element = h(
    'div',
    { class: 'toolbar', role: 'group', 'aria-label': strings.chartOptions },
    smoothing.element,
    xAxis.element,
    clip.element,
    h('div', { class: 'switches' }, raw.element, logScale.element, marks.element, tables.element),
    h(
      'div',
      { class: 'tools' },
      reset,
      iconButton({ label: strings.exportPng, icon: 'device-camera', onClick: exportPng }),
      iconButton({ label: strings.exportCsv, icon: 'table', onClick: exportCsv }),
      button({ label: strings.addRuns, icon: 'add', onClick: addRuns }),
    ),
  )
  return {
    element,
    show: (next, isZoomed) => {
      smoothing.set(positionOfWeight(next.smoothing), formatWeight(next.smoothing))
      xAxis.set(next.xAxis)
      clip.set(next.clip)
      raw.set(next.raw)
      logScale.set(next.logScale)
      marks.set(next.marks)
      tables.set(next.tables)
      reset.disabled = !isZoomed
    },
  }
}
