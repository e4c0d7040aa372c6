import { createServer } from 'node:http'
import fs from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { extname, join } from 'node:path'
import { build } from 'esbuild'
import type { Browser, Page } from 'playwright-core'
import { chromium } from 'playwright-core'
import { panelHtml } from '../../src/training/panelHtml.ts'
import { webviewOptions } from '../../webview/bundleOptions.mjs'
import { findBrowser } from '../../tools/browser.mjs'
import { themeCss, themes } from './themes.ts'

export type ThemeName = keyof typeof themes

export interface Pages {
  readonly browser: Browser
  /** `?page=training` or `preview`, `&theme=…`. */
  readonly address: string
  close(): Promise<void>
}

const types: Readonly<Record<string, string>> = {
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.ttf': 'font/ttf',
  '.html': 'text/html; charset=utf-8',
}

/** Chromium, and the bundled pages as the editor serves them: with its policy, its variables and nothing else. */
export async function startPages(): Promise<Pages> {
  const folder = fs.mkdtempSync(join(tmpdir(), 'unsloth-panel-'))
  await build({ ...webviewOptions, outdir: folder })
  const server = createServer((request, response) => {
    const { pathname, searchParams, origin } = new URL(request.url ?? '/', `http://${request.headers.host}`)
    const name = searchParams.get('theme') ?? 'dark'
    const theme = themes[name as ThemeName]
    const reply = (type: string, body: string | Buffer): void => void response.writeHead(200, { 'content-type': type }).end(body)
    if (pathname === '/') {
      const page = searchParams.get('page') ?? 'training'
      const html = panelHtml({
        cspSource: origin,
        nonce: 'bm9uY2U=',
        styleNonce: 'c3R5bGU=',
        scriptUri: `/${page}.js`,
        styleUri: `/${page}.css`,
        title: 'Training',
        language: 'en',
      })
      reply(
        types['.html']!,
        html
          .replace('<body>', `<body class="${theme.bodyClass}" data-vscode-theme-kind="${theme.bodyClass}">`)
          .replace('<link ', `<link rel="stylesheet" href="/theme.css?theme=${name}"><link `),
      )
    } else if (pathname === '/theme.css') reply(types['.css']!, themeCss(theme))
    else if (pathname === '/favicon.ico') response.writeHead(204).end()
    else {
      const file = join(folder, pathname.slice(1))
      if (fs.existsSync(file)) reply(types[extname(file)] ?? 'application/octet-stream', fs.readFileSync(file))
      else response.writeHead(404).end()
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const browser = await chromium.launch({
    executablePath: findBrowser() ?? 'chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
  return {
    browser,
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: async () => {
      await browser.close()
      await new Promise((resolve) => server.close(resolve))
      fs.rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Milliseconds that a page has for what is asked of it, on a machine with other work to do. */
export const patience = 60_000

/**
 * A page follows what is done to it when it can, so nothing about it is read once: repeats the check until it holds, or throws the
 * last of its errors.
 */
export async function soon(check: () => void | Promise<void>): Promise<void> {
  for (const end = Date.now() + patience; ;) {
    try {
      return await check()
    } catch (error) {
      if (Date.now() > end) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Collects errors of the console and breaches of the content security policy. */
export function collectProblems(page: Page, problems: string[]): void {
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') problems.push(message.text())
  })
  page.on('pageerror', (error) => problems.push(error.stack ?? error.message))
}

/** Plays the editor within the page. It is text, because this side of the project knows no DOM. */
export const editorSide = `
  globalThis.acquireVsCodeApi = () => ({
    postMessage: (message) => void hostReceive(message),
    getState: () => JSON.parse(sessionStorage.getItem('kept') ?? 'null'),
    setState: (state) => sessionStorage.setItem('kept', JSON.stringify(state)),
  })
  globalThis.deliver = (data) => void dispatchEvent(new MessageEvent('message', { data }))
  addEventListener(
    'securitypolicyviolation',
    ({ violatedDirective, blockedURI, sourceFile, lineNumber }) =>
      console.error('CSP: ' + [violatedDirective, blockedURI, sourceFile, lineNumber].join(' ')),
  )
`
