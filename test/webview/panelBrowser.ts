import fs from 'node:fs'
import { join } from 'node:path'
import type { Browser, Page } from 'playwright-core'
import type { FromWebview, PanelAction, ToWebview } from '#shared/panelProtocol.ts'
import { panelStrings } from '#shared/panelStrings.ts'
import { PanelSession } from '../../src/training/panelSession.ts'
import type { TrackedRun } from '../../src/training/runTracker.ts'
import { collectProblems, editorSide, patience, startPages, type ThemeName } from './pages.ts'

/** Names that the page's side of the harness has. */
interface PageSide {
  deliver(message: ToWebview): void
  /** Milliseconds from a message to the second frame after it, in which its picture is on the screen. */
  timed(message: ToWebview): Promise<number>
  gauge(): Promise<number>
}

/** What `gauge` takes on a machine with nothing else to do, in milliseconds: half of it is work, the rest waits for frames. */
const gaugeAtRest = 70

export interface OpenOptions {
  /** The first one is shown; the others are there to be added. */
  readonly runs: readonly TrackedRun[]
  readonly theme?: ThemeName
  readonly width?: number
  readonly height?: number
}

export interface PanelBrowser {
  open(options: OpenOptions): Promise<PanelPage>
  close(): Promise<void>
}

/** Chromium with the bundled panel, and a real session of the host at the other end. */
export async function startPanelBrowser(): Promise<PanelBrowser> {
  const pages = await startPages()
  return { open: (options) => PanelPage.open(pages.browser, pages.address, options), close: () => pages.close() }
}

/** One panel in the browser. */
export class PanelPage {
  readonly page: Page
  readonly session: PanelSession
  /** What the page has said. */
  readonly received: FromWebview[] = []
  /** What the host has said. */
  readonly posted: ToWebview[] = []
  /** Milliseconds from each of those to its picture. */
  readonly times: number[] = []
  /** Errors of the console and breaches of the content security policy. */
  readonly problems: string[] = []
  readonly actions: { readonly action: PanelAction; readonly dir: string }[] = []
  readonly saved: { csv: string[]; png: Uint8Array[] } = { csv: [], png: [] }
  /** What the next action answers. */
  failure: Error | undefined

  private constructor(page: Page, runs: ReadonlyMap<string, TrackedRun>) {
    this.page = page
    this.session = new PanelSession({
      post: (message) => this.#post(message),
      trackers: { acquire: (dir) => ({ tracker: runs.get(dir)!, dispose: () => undefined }) },
      strings: panelStrings,
      log: (message) => this.problems.push(message),
      actions: {
        perform: (action, dir) => {
          this.actions.push({ action, dir })
          return this.failure === undefined ? Promise.resolve() : Promise.reject(this.failure)
        },
        pickRuns: (shown) => Promise.resolve([...runs.keys()].filter((dir) => !shown.includes(dir))),
      },
      saveCsv: (shown) => Promise.resolve(void this.saved.csv.push(...shown.map(({ dir }) => dir))),
      savePng: (png) => Promise.resolve(void this.saved.png.push(png)),
    })
  }

  static async open(browser: Browser, address: string, options: OpenOptions): Promise<PanelPage> {
    const { runs, theme = 'dark', width = 1_100, height = 1_400 } = options
    const context = await browser.newContext({ viewport: { width, height } })
    context.setDefaultTimeout(patience)
    const page = await context.newPage()
    const panel = new PanelPage(page, new Map(runs.map((run) => [run.dir, run])))
    collectProblems(page, panel.problems)
    await page.exposeFunction('hostReceive', (message: FromWebview) => {
      panel.received.push(message)
      void panel.session.handle(message)
    })
    await page.addInitScript(pageSide)
    if (runs[0] !== undefined) panel.session.add(runs[0].dir)
    await page.goto(`${address}/?page=training&theme=${theme}`)
    await panel.until('the first picture', () => panel.times.length > 0)
    return panel
  }

  /** Waits for something, and says what when it does not come. */
  async until(what: string, condition: () => boolean | Promise<boolean>, limit = patience): Promise<void> {
    const end = Date.now() + limit
    while (!(await condition())) {
      if (Date.now() > end) throw new Error(`${what} did not come within ${limit} ms. ${this.problems.join('\n')}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  text(selector: string): Promise<string> {
    return this.page.locator(selector).first().innerText()
  }

  /** What a screen reader was told last. */
  said(): Promise<string> {
    return this.page.evaluate('document.querySelector("[role=status]").textContent')
  }

  /** How many times longer than at rest a page takes now for work that has nothing to do with the panel; at least 1. */
  async slowness(): Promise<number> {
    const times = await this.page.evaluate<number[]>(`(async () => {
      const times = []
      for (let i = 0; i < 3; i++) times.push(await panelHarness.gauge())
      return times
    })()`)
    return Math.max(1, times.sort((a, b) => a - b)[1]! / gaugeAtRest)
  }

  async screenshot(name: string): Promise<void> {
    const folder = process.env.PANEL_SCREENSHOTS
    if (folder === undefined) return
    fs.mkdirSync(folder, { recursive: true })
    // Hiding the caret would take an inline style, which the page's policy forbids.
    await this.page.screenshot({ path: join(folder, `${name}.png`), fullPage: true, caret: 'initial' })
  }

  /** Keeps a file beside the screenshots, when those are wanted. */
  keep(name: string, bytes: Uint8Array): void {
    const folder = process.env.PANEL_SCREENSHOTS
    if (folder !== undefined) fs.writeFileSync(join(folder, name), bytes)
  }

  async close(): Promise<void> {
    this.session.dispose()
    await this.page.context().close()
  }

  async #post(message: ToWebview): Promise<boolean> {
    this.posted.push(message)
    try {
      this.times.push(
        await this.page.evaluate(
          (data) => (globalThis as unknown as { panelHarness: PageSide }).panelHarness.timed(data),
          message,
        ),
      )
      return true
    } catch {
      return false // The page is being reloaded.
    }
  }
}

const pageSide = `
  ${editorSide}
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve))
  globalThis.panelHarness = {
    deliver,
    timed: async (message) => {
      const start = performance.now()
      deliver(message)
      do await frame()
      while (message.type === 'hydrate' && message.data.some(({ steps }) =>
        steps?.x.length > 0) && document.querySelector('.chart.wide canvas') === null)
      await frame()
      return performance.now() - start
    },
    gauge: async () => {
      const start = performance.now()
      const context = Object.assign(document.createElement('canvas'), { width: 1000, height: 280 }).getContext('2d')
      for (let line = 0; line < 9; line++) {
        context.beginPath()
        for (let x = 0; x < 20000; x++) context.lineTo(x / 20, 140 + 100 * Math.sin(x * x + line))
        context.stroke()
      }
      await frame()
      await frame()
      return performance.now() - start
    },
  }
`
