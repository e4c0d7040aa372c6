import { createServer } from 'node:http'
import fs from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { extname, join } from 'node:path'
import { build } from 'esbuild'
import type { Browser, Page } from 'playwright-core'
import { chromium } from 'playwright-core'
import type { FromWebview, PanelAction, ToWebview } from '#shared/panelProtocol.ts'
import { panelStrings } from '#shared/panelStrings.ts'
import { panelHtml } from '../../src/training/panelHtml.ts'
import { PanelSession } from '../../src/training/panelSession.ts'
import type { TrackedRun } from '../../src/training/runTracker.ts'
import { webviewOptions } from '../../webview/bundleOptions.mjs'
import { themeCss, themes } from './themes.ts'
import { findBrowser } from '../../tools/browser.mjs'

export type ThemeName = keyof typeof themes

/** Names that the page's side of the harness has. */
interface PageSide {
  deliver(message: ToWebview): void
  /** Milliseconds from a message to the second frame after it, in which its picture is on the screen. */
  timed(message: ToWebview): Promise<number>
}

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
  const folder = fs.mkdtempSync(join(tmpdir(), 'unsloth-panel-'))
  await build({ ...webviewOptions, outdir: folder })
  const types: Readonly<Record<string, string>> = {
    '.js': 'text/javascript', '.css': 'text/css', '.ttf': 'font/ttf', '.html': 'text/html; charset=utf-8',
  }
  const server = createServer((request, response) => {
    const { pathname, searchParams, origin } = new URL(request.url ?? '/', `http://${request.headers.host}`)
    const theme = themes[(searchParams.get('theme') ?? 'dark') as ThemeName]
    const reply = (type: string, body: string | Buffer): void => void response.writeHead(200, { 'content-type': type }).end(body)
    if (pathname === '/') {
      const html = panelHtml({
        cspSource: origin, nonce: 'bm9uY2U=', styleNonce: 'c3R5bGU=', scriptUri: '/training.js', styleUri: '/training.css',
        title: 'Training', language: 'en',
      })
      reply(types['.html']!, html
        .replace('<body>', `<body class="${theme.bodyClass}" data-vscode-theme-kind="${theme.bodyClass}">`)
        .replace('<link ', `<link rel="stylesheet" href="/theme.css?theme=${searchParams.get('theme') ?? 'dark'}"><link `))
    } else if (pathname === '/theme.css') reply(types['.css']!, themeCss(theme))
    else if (pathname === '/favicon.ico') response.writeHead(204).end()
    else {
      const file = join(folder, pathname.slice(1))
      if (fs.existsSync(file)) reply(types[extname(file)] ?? 'application/octet-stream', fs.readFileSync(file))
      else response.writeHead(404).end()
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const browser = await chromium.launch({
    executablePath: findBrowser() ?? 'chromium',
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync',
    ],
  })
  return {
    open: (options) => PanelPage.open(browser, address, options),
    close: async () => {
      await browser.close()
      await new Promise((resolve) => server.close(resolve))
      fs.rmSync(folder, { recursive: true, force: true })
    },
  }
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
      strings: panelStrings, log: (message) => this.problems.push(message),
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
    const page = await context.newPage()
    const panel = new PanelPage(page, new Map(runs.map((run) => [run.dir, run])))
    page.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') panel.problems.push(message.text())
    })
    page.on('pageerror', (error) => panel.problems.push(error.stack ?? error.message))
    await page.exposeFunction('hostReceive', (message: FromWebview) => {
      panel.received.push(message)
      void panel.session.handle(message)
    })
    await page.addInitScript(pageSide)
    if (runs[0] !== undefined) panel.session.add(runs[0].dir)
    await page.goto(`${address}/?theme=${theme}`)
    await panel.until('the first picture', () => panel.times.length > 0)
    return panel
  }

  /** Waits for something, and says what when it does not come. */
  async until(what: string, condition: () => boolean | Promise<boolean>, limit = 5_000): Promise<void> {
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

  /** Two frames later, what was asked for is on the screen. */
  async settle(): Promise<void> {
    await this.page.evaluate('new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))')
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
      this.times.push(await this.page.evaluate(
        (data) => (globalThis as unknown as { panelHarness: PageSide }).panelHarness.timed(data), message,
      ))
      return true
    } catch {
      return false // The page is being reloaded.
    }
  }
}

/** Plays the editor within the page. It is text, because this side of the project knows no DOM. */
const pageSide = `
  globalThis.acquireVsCodeApi = () => ({
    postMessage: (message) => void hostReceive(message),
    getState: () => JSON.parse(sessionStorage.getItem('kept') ?? 'null'),
    setState: (state) => sessionStorage.setItem('kept', JSON.stringify(state)),
  })
  const deliver = (data) => void dispatchEvent(new MessageEvent('message', { data }))
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
  }
  addEventListener(
    'securitypolicyviolation',
    ({ violatedDirective, blockedURI, sourceFile, lineNumber }) =>
      console.error('CSP: ' + [violatedDirective, blockedURI, sourceFile, lineNumber].join(' ')),
  )
`
