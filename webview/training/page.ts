import type { FromWebview, PanelSettings, PanelState, Range, ToWebview } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { panelStrings } from '#shared/panelStrings.ts'
import { h } from '../dom.ts'
import type { HostConnection } from '../vscodeApi.ts'
import { Announcer } from './announcer.ts'
import { ChartGrid } from './chartGrid.ts'
import { chartsAsPng } from './exportPng.ts'
import { Header } from './header.ts'
import { Legend } from './legend.ts'
import { PanelModel } from './panelModel.ts'
import { onThemeChange, readTheme } from './theme.ts'
import type { Toolbar } from './toolbar.ts'
import { createToolbar } from './toolbar.ts'

/** Milliseconds for which requests for another view are collected while a slider or the wheel moves. */
const viewDelay = 80

type Host = HostConnection<FromWebview, ToWebview, PanelState>

/** The parts that are built when the host has sent the texts. */
interface Parts {
  readonly header: Header
  readonly legend: Legend
  readonly toolbar: Toolbar
  readonly grid: ChartGrid
  readonly announcer: Announcer
}

/** The page: takes what the host tells, keeps how it is looked at, and asks for what it needs. */
export class TrainingPage {
  readonly #root: HTMLElement
  readonly #host: Host
  readonly #model = new PanelModel()
  #settings: PanelSettings
  #range: Range | null
  readonly #hidden: Set<string>
  /** Run directories; those of the last time until the host has told. */
  #runs: readonly string[]
  #selected = ''
  #parts: Parts | undefined
  #view = 0
  #viewTimer: ReturnType<typeof setTimeout> | undefined
  #frame = 0
  #width = 0

  constructor(root: HTMLElement, host: Host, kept: PanelState) {
    this.#root = root
    this.#host = host
    this.#settings = kept.settings
    this.#range = kept.range
    this.#hidden = new Set(kept.hidden)
    this.#runs = kept.runs
  }

  start(): void {
    this.#host.onMessage((message) => this.#receive(message))
    onThemeChange(() => this.#parts?.grid.themeChanged(readTheme()))
    // Elapsed time goes on between two messages.
    setInterval(() => {
      if (this.#model.runs.some(({ info }) => info.alive)) this.#showInfos()
    }, 1_000)
    this.#width = Math.max(64, this.#root.clientWidth)
    this.#host.send({ type: 'ready', state: this.#state(), viewport: this.#viewport() })
  }

  #receive(message: ToWebview): void {
    switch (message.type) {
      case 'acted':
        this.#parts?.header.acted(message.id, message.action, message.error)
        this.#showInfos()
        return
      case 'hydrate':
      case 'update': {
        if (message.type === 'hydrate' && this.#parts === undefined) this.#build({ ...panelStrings, ...message.strings })
        const change = this.#model.apply(message)
        if (change.infos) {
          this.#runs = this.#model.runs.map(({ info }) => info.id)
          this.#keep()
        }
        this.#showInfos()
        if (change.data) this.#showCharts()
        return
      }
    }
  }

  #build(strings: PanelStrings): void {
    const announcer = new Announcer(strings)
    const header = new Header({ strings, act: (action, id) => this.#host.send({ type: 'action', action, id }) })
    const legend = new Legend({
      strings,
      select: (id) => {
        this.#selected = id
        this.#showInfos()
      },
      setShown: (id, shown) => {
        if (shown) this.#hidden.delete(id)
        else this.#hidden.add(id)
        this.#keep()
        this.#showCharts()
      },
      remove: (id) => this.#host.send({ type: 'removeRun', id }),
    })
    const toolbar = createToolbar(
      {
        strings,
        change: (settings) => this.#change(settings),
        resetZoom: () => this.#zoom(null),
        addRuns: () => this.#host.send({ type: 'addRuns' }),
        exportPng: () => void this.#exportPng(),
        exportCsv: () => this.#host.send({ type: 'exportCsv', ids: this.#drawn().map(({ info }) => info.id) }),
      },
      this.#settings,
    )
    const grid = new ChartGrid({
      strings,
      settings: this.#settings,
      theme: readTheme(),
      zoom: (range) => this.#zoom(range),
      say: (text) => announcer.say(text),
      onWidth: (width) => {
        if (width <= this.#width && width > this.#width / 2) return
        this.#width = width
        this.#askForView()
      },
    })
    this.#parts = { header, legend, toolbar, grid, announcer }
    this.#root.replaceChildren(header.element, legend.element, h('main', {}, toolbar.element, grid.element), announcer.element)
  }

  #change(settings: Partial<PanelSettings>): void {
    const before = this.#settings
    this.#settings = { ...before, ...settings }
    // A part of one axis says nothing on another one.
    if (this.#settings.xAxis !== before.xAxis) this.#range = null
    this.#keep()
    this.#showCharts()
    const { xAxis, smoothing, clip } = this.#settings
    if (xAxis !== before.xAxis || smoothing !== before.smoothing || clip !== before.clip) this.#askForView()
  }

  #zoom(range: Range | null): void {
    this.#range = range
    this.#keep()
    this.#showCharts()
    this.#askForView()
  }

  /** Asks the host for the points of what is looked at now, after a moment. */
  #askForView(): void {
    this.#viewTimer ??= setTimeout(() => {
      this.#viewTimer = undefined
      this.#host.send({ type: 'view', view: ++this.#view, settings: this.#settings, viewport: this.#viewport() })
    }, viewDelay)
  }

  #viewport(): { readonly range: Range | null; readonly width: number } {
    return { range: this.#range, width: Math.round(this.#width * devicePixelRatio) }
  }

  #state(): PanelState {
    return { version: 1, runs: this.#runs, hidden: [...this.#hidden], settings: this.#settings, range: this.#range }
  }

  #keep(): void {
    this.#host.keep(this.#state())
  }

  #drawn() {
    return this.#model.runs.filter(({ info }) => !this.#hidden.has(info.id))
  }

  #showInfos(): void {
    const { runs } = this.#model
    const run = this.#model.run(this.#selected) ?? runs[0]
    if (this.#parts === undefined || run === undefined) return
    this.#selected = run.info.id
    const { header, legend, announcer } = this.#parts
    header.show(run, runs.length > 1, Date.now() + this.#model.clockOffset)
    legend.show(runs, this.#hidden, this.#selected)
    announcer.progress(run.info)
  }

  /** Draws the charts with the next frame, however many changes there are until then. */
  #showCharts(): void {
    if (this.#frame !== 0) return
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0
      this.#parts?.toolbar.show(this.#settings, this.#range !== null)
      this.#parts?.grid.show(this.#model.runs, this.#hidden, this.#settings, this.#range)
    })
  }

  async #exportPng(): Promise<void> {
    if (this.#parts === undefined) return
    const png = await chartsAsPng(this.#parts.grid.drawAll(), this.#drawn(), readTheme())
    if (png !== undefined) this.#host.send({ type: 'exportPng', png })
  }
}
