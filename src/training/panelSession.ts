import { describeError } from '#shared/errors.ts'
import type { FromWebview, PanelAction, PanelSettings, RunDelta, RunInfo, ToWebview, Viewport } from '#shared/panelProtocol.ts'
import { defaultSettings, panelActions, readPanelState, readViewport } from '#shared/panelProtocol.ts'
import type { Disposable, TrackedRun } from './runTracker.ts'
import { SeriesView } from './seriesView.ts'

/** What the panel's buttons do. A rejection's message and hint are shown in the panel. */
export interface TrainingActions {
  /** `shown`: all runs of the panel, the first one first. Settles when the thing is done or on its way. */
  perform(action: PanelAction, dir: string, shown: readonly string[]): Promise<void>
  /** Lets the user choose runs to lay over those that are shown; none when they changed their mind. */
  pickRuns(shown: readonly string[]): Promise<readonly string[]>
}

/** What a session needs of its surroundings; the editor behind it is replaceable. */
export interface SessionOptions {
  /** Sends to the page; resolves to false when the page did not get it. */
  readonly post: (message: ToWebview) => PromiseLike<boolean>
  readonly trackers: { acquire(dir: string): { readonly tracker: TrackedRun } & Disposable }
  readonly strings: Readonly<Record<string, string>>
  readonly actions: TrainingActions
  readonly saveCsv: (runs: readonly TrackedRun[]) => Promise<void>
  readonly savePng: (png: Uint8Array) => Promise<void>
  readonly log: (message: string) => void
  /** The runs that are shown have changed. */
  readonly onRuns?: (runs: readonly RunInfo[]) => void
  /** Least milliseconds between two updates that nobody asked for. */
  readonly interval?: number
}

interface ShownRun {
  readonly tracker: TrackedRun
  readonly view: SeriesView
  readonly release: () => void
}

/** Four updates a second. */
const updateInterval = 250

/** One panel's side in the host: which runs it shows, what it looks at, and what it has already got. */
export class PanelSession implements Disposable {
  readonly #options: SessionOptions
  readonly #interval: number
  readonly #runs = new Map<string, ShownRun>()
  #settings: PanelSettings = defaultSettings
  #viewport: Viewport = readViewport(undefined)
  #view = 0
  #ready = false
  #visible = true
  #infos = ''
  #timer: NodeJS.Timeout | undefined
  #lastUpdate = 0
  #sending = false
  #again = false
  #disposed = false

  constructor(options: SessionOptions) {
    this.#options = options
    this.#interval = options.interval ?? updateInterval
  }

  /** The run directories that are shown, in order. */
  get runs(): readonly string[] {
    return [...this.#runs.keys()]
  }

  /** Shows a run beside those that are shown. */
  add(dir: string): void {
    const lease = this.#options.trackers.acquire(dir)
    const { tracker } = lease
    if (this.#runs.has(tracker.dir)) {
      lease.dispose()
      return
    }
    const listener = tracker.onDidChange(() => this.#schedule())
    const release = (): void => {
      listener.dispose()
      lease.dispose()
    }
    this.#runs.set(tracker.dir, { tracker, view: new SeriesView(tracker.series, this.#settings, this.#viewport), release })
    this.#runsChanged()
  }

  remove(dir: string): void {
    const run = this.#runs.get(dir)
    if (run === undefined || this.#runs.size === 1) return
    run.release()
    this.#runs.delete(dir)
    this.#runsChanged()
  }

  /** A hidden page gets nothing; a shown one gets everything anew. */
  setVisible(visible: boolean): void {
    const appeared = visible && !this.#visible
    this.#visible = visible
    if (appeared && this.#ready) void this.#hydrate()
  }

  /** The page was thrown away and will say `ready` again. */
  pageGone(): void {
    this.#ready = false
  }

  async handle(message: FromWebview): Promise<void> {
    const { actions, log } = this.#options
    switch (message.type) {
      case 'ready':
        this.#settings = readPanelState(message.state).settings
        this.#viewport = readViewport(message.viewport)
        this.#view = 0
        this.#ready = true
        await this.#hydrate()
        return
      case 'view':
        this.#settings = readPanelState({ settings: message.settings }).settings
        this.#viewport = readViewport(message.viewport)
        this.#view = message.view
        await this.#update()
        return
      case 'action':
        await this.#act(message.action, message.id)
        return
      case 'addRuns':
        try {
          for (const dir of await actions.pickRuns(this.runs)) this.add(dir)
        } catch (error) {
          log(describeError(error))
        }
        return
      case 'removeRun':
        this.remove(message.id)
        return
      case 'exportCsv': {
        const wanted = this.runs.filter((dir) => message.ids.includes(dir))
        await this.#options.saveCsv(wanted.map((dir) => this.#runs.get(dir)!.tracker))
        return
      }
      case 'exportPng':
        await this.#options.savePng(message.png)
        return
      case 'failed':
        log(`The training panel: ${message.message}`)
        return
    }
  }

  dispose(): void {
    this.#disposed = true
    clearTimeout(this.#timer)
    for (const { release } of this.#runs.values()) release()
    this.#runs.clear()
  }

  async #act(action: PanelAction, id: string): Promise<void> {
    if (!this.#runs.has(id) || !panelActions.includes(action)) return
    let error: string | undefined
    try {
      await this.#options.actions.perform(action, id, this.runs)
    } catch (thrown) {
      error = describeError(thrown)
    }
    if (this.#ready && !this.#disposed) await this.#post({ type: 'acted', id, action, ...(error === undefined ? {} : { error }) })
  }

  #runsChanged(): void {
    const infos = this.#infoList()
    this.#options.onRuns?.(infos)
    if (this.#ready && this.#visible) void this.#update()
  }

  #infoList(): RunInfo[] {
    return [...this.#runs.values()].map(({ tracker }) => tracker.info())
  }

  /** Sends within the interval, everything that has come by then together. */
  #schedule(): void {
    if (!this.#ready || !this.#visible || this.#timer !== undefined || this.#disposed) return
    const wait = Math.max(0, this.#lastUpdate + this.#interval - Date.now())
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      void this.#update()
    }, wait)
  }

  async #hydrate(): Promise<void> {
    if (!this.#visible || this.#disposed) return
    for (const { view } of this.#runs.values()) view.forget()
    const runs = this.#infoList()
    this.#infos = JSON.stringify(runs)
    this.#lastUpdate = Date.now()
    this.#options.onRuns?.(runs)
    await this.#post({ type: 'hydrate', strings: this.#options.strings, now: Date.now(), runs, data: this.#deltas() })
  }

  /** Sends what is new, one message at a time: a page that is slow gets fewer and larger ones. */
  async #update(): Promise<void> {
    if (!this.#ready || !this.#visible || this.#disposed) return
    if (this.#sending) {
      this.#again = true
      return
    }
    this.#sending = true
    try {
      do {
        this.#again = false
        const runs = this.#infoList()
        const infos = JSON.stringify(runs)
        const data = this.#deltas()
        const changed = infos !== this.#infos
        if (changed) this.#options.onRuns?.(runs)
        this.#infos = infos
        this.#lastUpdate = Date.now()
        await this.#post({ type: 'update', view: this.#view, now: Date.now(), ...(changed ? { runs } : {}), data })
      } while (this.#again && this.#ready && this.#visible)
    } finally {
      this.#sending = false
    }
  }

  #deltas(): RunDelta[] {
    const deltas: RunDelta[] = []
    for (const [id, { view }] of this.#runs) {
      view.look(this.#settings, this.#viewport, this.#runs.size)
      const delta = view.delta(id)
      if (delta !== undefined) deltas.push(delta)
    }
    return deltas
  }

  async #post(message: ToWebview): Promise<void> {
    try {
      if (await this.#options.post(message)) return
    } catch (error) {
      if (!this.#disposed) this.#options.log(describeError(error))
    }
    // It did not arrive: what the page has is unknown, so the next message must be complete.
    for (const { view } of this.#runs.values()) view.forget()
    this.#infos = ''
  }
}
