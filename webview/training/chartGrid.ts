import type { PanelSettings, Range } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { h } from '../dom.ts'
import type { ChartSurroundings } from './chart.ts'
import { Chart } from './chart.ts'
import { chartSpecs } from './chartSpecs.ts'
import type { PlacedRun } from './curves.ts'
import type { ShownRun } from './panelModel.ts'
import type { Theme } from './theme.ts'

export interface ChartGridOptions {
  readonly strings: PanelStrings
  readonly settings: PanelSettings
  readonly theme: Theme
  readonly zoom: (range: Range | null) => void
  readonly say: (text: string) => void
  /** The widest chart has become this wide, in pixels of the page. */
  readonly onWidth: (width: number) => void
}

/** All charts, in columns as the window allows. Charts outside the window wait until they are scrolled to. */
export class ChartGrid {
  readonly element = h('div', { class: 'charts' })
  readonly #options: ChartGridOptions
  readonly #shared: ChartSurroundings
  readonly #charts = new Map<string, Chart>()
  readonly #byElement = new WeakMap<Element, Chart>()
  readonly #onScreen: IntersectionObserver
  readonly #sizes: ResizeObserver

  constructor(options: ChartGridOptions) {
    this.#options = options
    const { strings, settings, theme, say } = options
    this.#shared = {
      strings,
      settings,
      theme,
      say,
      range: { min: 0, max: 0 },
      extent: { min: 0, max: 0 },
      zoom: (range) => options.zoom(range === null ? null : this.#within(range)),
    }
    this.#onScreen = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) this.#byElement.get(target)?.setOnScreen(isIntersecting)
        this.#reportWidth()
      },
      { rootMargin: '100px' },
    )
    this.#sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) this.#byElement.get(target)?.measure()
      this.#reportWidth()
    })
  }

  show(runs: readonly ShownRun[], hidden: ReadonlySet<string>, settings: PanelSettings, range: Range | null): void {
    const drawn = runs.map((run, place): PlacedRun => ({ run, place })).filter(({ run }) => !hidden.has(run.info.id))
    const extents = drawn.map(({ run }) => run.extent).filter((extent) => extent !== null)
    const extent =
      extents.length === 0
        ? { min: 0, max: 1 }
        : { min: Math.min(...extents.map(({ min }) => min)), max: Math.max(...extents.map(({ max }) => max)) }
    this.#shared.settings = settings
    this.#shared.extent = extent
    this.#shared.range = range ?? extent
    const specs = chartSpecs(
      drawn.map(({ run }) => run),
      this.#shared.strings,
    )
    const wanted = new Set(specs.map(({ id }) => id))
    for (const [id, chart] of this.#charts) {
      if (wanted.has(id)) continue
      this.#onScreen.unobserve(chart.element)
      this.#sizes.unobserve(chart.element)
      chart.destroy()
      this.#charts.delete(id)
    }
    specs.forEach((spec, place) => {
      let chart = this.#charts.get(spec.id)
      if (chart === undefined) {
        chart = new Chart(spec, this.#shared)
        this.#charts.set(spec.id, chart)
        this.#byElement.set(chart.element, chart)
      }
      chart.spec = spec
      const { [place]: there } = this.element.children
      if (there !== chart.element) this.element.insertBefore(chart.element, there ?? null)
      this.#onScreen.observe(chart.element)
      this.#sizes.observe(chart.element)
      chart.show(drawn)
    })
  }

  themeChanged(theme: Theme): void {
    if (JSON.stringify(theme) === JSON.stringify(this.#shared.theme)) return
    this.#shared.theme = theme
    for (const chart of this.#charts.values()) chart.repaint()
  }

  /** Every chart, drawn also when it is outside the window. */
  drawAll(): readonly Chart[] {
    const charts = [...this.element.children].flatMap((element) => this.#byElement.get(element) ?? [])
    for (const chart of charts) chart.draw()
    return charts
  }

  #within(range: Range): Range | null {
    const { extent } = this.#shared
    const cut = { min: Math.max(range.min, extent.min), max: Math.min(range.max, extent.max) }
    return cut.max > cut.min ? cut : null
  }

  #reportWidth(): void {
    const width = Math.max(0, ...[...this.#charts.values()].map(({ plotWidth }) => plotWidth))
    if (width > 0) this.#options.onWidth(width)
  }
}
