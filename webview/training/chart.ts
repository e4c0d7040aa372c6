import uPlot from 'uplot'
import type { Mark, PanelSettings, Range } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { fill } from '#shared/panelStrings.ts'
import { h, setAttribute, setText } from '../dom.ts'
import { nearestIndex, nearestValue } from './align.ts'
import { bindNavigation } from './chartNavigation.ts'
import { chartOptions } from './chartOptions.ts'
import type { ChartSpec } from './chartSpecs.ts'
import { chartTable } from './chartTable.ts'
import type { ChartData, PlacedRun } from './curves.ts'
import { chartData, curveColour, factsOf } from './curves.ts'
import { formatPosition, formatValue } from './format.ts'
import { drawMarks, markLabel, nearestMark } from './marks.ts'
import type { Theme } from './theme.ts'
import { runColours } from './theme.ts'

/** What all charts of the page share. */
export interface ChartSurroundings {
  readonly strings: PanelStrings
  settings: PanelSettings
  theme: Theme
  /** The part of the x axis that is shown. */
  range: Range
  /** Everything that there is. */
  extent: Range
  /** Shows another part; null: everything. */
  readonly zoom: (range: Range | null) => void
  /** Reads a text to users of screen readers. */
  readonly say: (text: string) => void
}

/** Milliseconds between two refreshes of the values as a table. */
const tableInterval = 2_000

/** One chart: title with values, curves, and the same as text. */
export class Chart {
  readonly element: HTMLElement
  spec: ChartSpec
  readonly #shared: ChartSurroundings
  readonly #readout = h('div', { class: 'readout' })
  readonly #note = h('div', { class: 'mark-note', hidden: true })
  readonly #empty = h('p', { class: 'empty' })
  readonly #plot: HTMLElement
  readonly #table = h('div', { class: 'chart-table' })
  readonly #title: HTMLElement
  #plotter: uPlot | undefined
  #structure = ''
  #runs: readonly PlacedRun[] = []
  #data: ChartData = { curves: [], aligned: [[]], structure: '', ceiling: undefined }
  #readings: { readonly element: HTMLElement; readonly curve: number }[] = []
  #tableTime = 0
  #size = { width: 0, height: 0 }
  /** What it should show is newer than what it shows: it is outside the window. */
  #stale = true
  #onScreen = false

  constructor(spec: ChartSpec, shared: ChartSurroundings) {
    this.spec = spec
    this.#shared = shared
    this.#title = h('h2', { id: `title-${spec.id}` }, spec.title)
    this.#plot = h(
      'div',
      { class: 'plot', tabindex: 0, role: 'img', 'aria-label': spec.title, 'aria-keyshortcuts': 'ArrowLeft ArrowRight + - 0' },
      this.#empty,
      this.#note,
    )
    this.element = h(
      'section',
      { class: spec.wide === true ? 'chart wide' : 'chart', 'data-chart': spec.id, 'aria-labelledby': `title-${spec.id}` },
      h('header', {}, this.#title, this.#readout),
      this.#plot,
      this.#table,
    )
    bindNavigation(this.#plot, { shared, plotter: () => this.#plotter, read: (index) => this.#sayValues(index) })
  }

  get plotter(): uPlot | undefined {
    return this.#plotter
  }

  /** Width of the curves' area in pixels of the page; 0 while there is none. */
  get plotWidth(): number {
    return this.#plotter === undefined ? 0 : this.#plotter.over.clientWidth
  }

  /** Takes what is to be shown and draws it when the chart is in the window. */
  show(runs: readonly PlacedRun[]): void {
    this.#runs = runs
    this.#stale = true
    if (this.#onScreen) this.draw()
  }

  setOnScreen(onScreen: boolean): void {
    this.#onScreen = onScreen
    if (onScreen && this.#stale) this.draw()
  }

  setSize(width: number, height: number): void {
    if (width === this.#size.width && height === this.#size.height) return
    this.#size = { width, height }
    if (this.#plotter === undefined) {
      if (this.#onScreen) this.draw()
    } else if (width > 0 && height > 0) this.#plotter.setSize({ width, height })
  }

  /** Reads the place that the layout gives. */
  measure(): void {
    const { clientWidth, clientHeight } = this.#plot
    this.setSize(clientWidth, clientHeight)
  }

  /** Draws now, wherever the chart is. */
  draw(): void {
    const { settings, strings } = this.#shared
    const isPlaced = (): boolean => this.#size.width > 0 && this.#size.height > 0
    if (!isPlaced()) this.#size = { width: this.#plot.clientWidth, height: this.#plot.clientHeight }
    if (!isPlaced()) return
    this.#stale = false
    this.#data = chartData(this.spec, this.#runs, settings)
    const hasValues = this.#data.aligned[0].length > 0 && this.#data.curves.some(({ role }) => role !== 'planned')
    this.#empty.hidden = hasValues
    setText(this.#title, this.spec.title)
    setText(this.#empty, this.spec.empty)
    if (!hasValues) {
      this.#discard()
      this.#readings = []
      this.#readout.replaceChildren()
      setAttribute(this.#plot, 'aria-label', fill(strings.chartEmpty, this.spec.title))
      this.#table.replaceChildren()
      return
    }
    const structure = `${this.#data.structure}/${settings.logScale}/${settings.xAxis}/${this.#runs.length > 1}`
    if (this.#plotter === undefined || structure !== this.#structure) {
      this.#structure = structure
      this.#build()
    } else this.#plotter.setData(this.#data.aligned)
    this.#describe()
  }

  /** After a change of the theme: the curves' colours are looked up anew. */
  repaint(): void {
    if (this.#plotter === undefined) return
    if (this.#onScreen) this.#build()
    else this.#stale = true
  }

  destroy(): void {
    this.#discard()
    this.element.remove()
  }

  #discard(): void {
    this.#plotter?.destroy()
    this.#plotter = undefined
    this.#structure = ''
  }

  #build(): void {
    this.#plotter?.destroy()
    const options = chartOptions({
      spec: this.spec,
      curves: this.#data.curves,
      shared: this.#shared,
      size: this.#size,
      several: this.#runs.length > 1,
      ceiling: () => this.#data.ceiling,
      onDraw: (plot) => this.#drawMarks(plot),
      onCursor: (plot) => this.#cursorMoved(plot),
    })
    this.#plotter = new uPlot(options, this.#data.aligned, this.#plot)
    this.#buildReadout()
  }

  get #marks(): { readonly mark: Mark; readonly place: number }[] {
    if (!this.#shared.settings.marks) return []
    return this.#runs.flatMap(({ run, place }) => run.marks.map((mark) => ({ mark, place })))
  }

  #drawMarks(plot: uPlot): void {
    const { theme } = this.#shared
    drawMarks(plot, this.#marks, theme, this.#runs.length > 1)
  }

  #buildReadout(): void {
    const several = this.#runs.length > 1
    this.#readings = []
    const items = this.#data.curves.flatMap((curve, index) => {
      // With several runs, raw values and plans would be a crowd.
      if (several && (curve.role === 'raw' || curve.role === 'planned')) return []
      const value = h('span', { class: 'value' })
      this.#readings.push({ element: value, curve: index })
      const colour = curveColour(curve, this.spec, several)
      const colourClass = `colour-${colour === 'evaluation' ? colour : colour % runColours}`
      const label = [several ? curve.run.info.name : '', this.#labelOf(index)].filter((part) => part !== '').join(' ')
      return [
        h(
          'span',
          { class: `reading ${curve.role}` },
          h('span', { class: `swatch ${colourClass}`, 'aria-hidden': 'true' }),
          label === '' ? null : h('span', { class: 'label' }, label),
          value,
        ),
      ]
    })
    this.#readout.replaceChildren(...items)
  }

  #labelOf(index: number): string {
    const { strings } = this.#shared
    const curve = this.#data.curves[index]!
    if (curve.role === 'raw') return strings.rawValue
    if (curve.role === 'smoothed') return this.#shared.settings.raw && this.#runs.length === 1 ? strings.smoothed : ''
    return curve.spec.label ?? ''
  }

  /** Values at the crosshair, or the last ones, and the chart's name for screen readers. */
  #describe(): void {
    const { strings, settings } = this.#shared
    this.#readValues()
    const main = this.#data.curves.findIndex(({ role }) => role !== 'raw' && role !== 'planned')
    const [x, ...columns] = this.#data.aligned
    const facts = main < 0 ? undefined : factsOf(x, columns[main]!)
    const text = (value: number): string => formatValue(value, this.spec.unit)
    const summary =
      facts === undefined
        ? fill(strings.chartEmpty, this.spec.title)
        : fill(
            strings.chartSummary,
            this.spec.title,
            text(facts.last),
            this.#positionText(facts.lastX),
            text(facts.lowest),
            text(facts.highest),
          )
    setAttribute(this.#plot, 'aria-label', `${summary} ${strings.chartKeys}`)
    if (!settings.tables) this.#table.replaceChildren()
    else if (performance.now() - this.#tableTime > tableInterval || this.#table.childElementCount === 0) {
      this.#tableTime = performance.now()
      this.#table.replaceChildren(chartTable(this.spec, this.#data, this.#shared, (index) => this.#labelOf(index)))
    }
  }

  #positionText(x: number): string {
    const { strings, settings } = this.#shared
    const names = { step: strings.step, epoch: strings.epoch, tokens: strings.axisTokens, time: strings.axisTime }
    return `${names[settings.xAxis]} ${formatPosition(x, settings.xAxis)}`
  }

  #cursorMoved(plot: uPlot): void {
    const { left } = plot.cursor
    this.#readValues()
    const near = left === undefined || left < 0 ? undefined : nearestMark(plot, this.#marks, left)
    const { strings } = this.#shared
    // The others follow with their values only.
    const leads = left !== undefined && left >= 0 && this.#plot.matches(':hover, :focus')
    this.#note.hidden = !leads
    if (!leads) return
    const x = this.#data.aligned[0][plot.cursor.idx ?? -1] ?? plot.posToVal(left, 'x')
    setText(
      this.#note,
      near === undefined ? this.#positionText(x) : `${this.#positionText(near.x)} · ${markLabel(near, strings)}`,
    )
    // On the side where the crosshair is not.
    this.#note.classList.toggle('at-left', left > plot.over.clientWidth / 2)
  }

  #readValues(): void {
    const [x, ...columns] = this.#data.aligned
    const { left } = this.#plotter?.cursor ?? {}
    const hovered = left !== undefined && left >= 0 ? nearestIndex(x, this.#plotter!.posToVal(left, 'x')) : -1
    for (const { element, curve } of this.#readings) {
      const values = columns[curve]!
      const at = nearestValue(values, hovered >= 0 ? hovered : x.length - 1)
      setText(element, at < 0 ? '–' : formatValue(values[at]!, this.spec.unit))
    }
  }

  #sayValues(index: number): void {
    const [x, ...columns] = this.#data.aligned
    const values = this.#readings.map(({ curve }) => {
      const at = nearestValue(columns[curve]!, index)
      const label = [this.#runs.length > 1 ? this.#data.curves[curve]!.run.info.name : '', this.#labelOf(curve)].join(' ').trim()
      return `${label} ${at < 0 ? '–' : formatValue(columns[curve]![at]!, this.spec.unit)}`.trim()
    })
    this.#shared.say(`${this.#positionText(x[index] ?? 0)}: ${values.join(', ')}`)
  }
}
