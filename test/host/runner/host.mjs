// A VS Code window under control: code-server as the editor, Chromium as its screen.
import { spawn } from 'node:child_process'
import { createWriteStream, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { format } from 'node:util'
import { chromium } from 'playwright-core'
import { installHost } from './install.mjs'

const settings = {
  'telemetry.telemetryLevel': 'off',
  'workbench.startupEditor': 'none',
  'extensions.autoUpdate': false,
  'extensions.autoCheckUpdates': false,
  'update.mode': 'none',
  'chat.disableAIFeatures': true,
  'git.enabled': false,
  'files.simpleDialog.enable': true,
  'window.restoreWindows': 'none',
  'workbench.tips.enabled': false,
  'workbench.enableExperiments': false,
  'editor.accessibilitySupport': 'off',
}

/** Settings of an editor that neither asks nor fetches anything. `trust`: workspaces have to be trusted, and are not. */
export const quietSettings = (trust) => ({
  ...settings,
  'security.workspace.trust.enabled': trust,
  'security.workspace.trust.startupPrompt': 'never',
  'security.workspace.trust.banner': 'never',
})

/** Milliseconds that a server has to start, on a machine with other work to do. */
const patience = 180_000

/** The port that the system has given a server, which tells of it when it listens. */
const portOf = (server) =>
  new Promise((resolve, reject) => {
    let said = ''
    const give = (reason) => reject(new Error(`code-server does not answer (${reason}): ${said.slice(-2000)}`))
    const timer = setTimeout(() => give(`after ${patience / 1000} s`), patience)
    const listen = (text) => {
      said += text
      const port = /HTTP server listening on http:\/\/127\.0\.0\.1:(\d+)/.exec(said)?.[1]
      if (port === undefined) return
      clearTimeout(timer)
      resolve(Number(port))
    }
    for (const stream of [server.stdout, server.stderr]) stream.setEncoding('utf8').on('data', listen)
    server.once('error', ({ message }) => give(message)).once('exit', (code) => give(`it ended with ${code}`))
  })

export class Host {
  #server
  #browser
  #context
  #folder

  /**
   * `vsix`: an extension package to install. `profile`: a folder with settings, which stay as they are; otherwise an empty one is
   * made, with `settings` added to the quiet ones.
   */
  static async start({ trust = false, vsix, settings = {}, viewport = { width: 1400, height: 900 }, profile, extensions } = {}) {
    const host = new Host()
    try {
      await host.#start({ trust, vsix, settings, viewport, profile, extensions })
      return host
    } catch (error) {
      await host.stop()
      throw error
    }
  }

  async #start({ trust, vsix, settings, viewport, profile, extensions }) {
    const { node, server, chromium: executablePath } = installHost()
    const folder = (this.#folder = mkdtempSync(join(tmpdir(), 'unsloth-host-')))
    if (profile === undefined) {
      mkdirSync(join(folder, 'data', 'User'), { recursive: true })
      writeFileSync(join(folder, 'data', 'User', 'settings.json'), JSON.stringify({ ...quietSettings(trust), ...settings }))
    }
    const places = [
      '--user-data-dir',
      profile ?? join(folder, 'data'),
      '--extensions-dir',
      extensions ?? join(folder, 'extensions'),
    ]
    const env = { ...process.env, EXTENSIONS_GALLERY: '{}' }
    // The editor of somebody who runs the tests in its terminal is not this one.
    for (const name of Object.keys(env)) if (/^VSCODE_|^NODE_OPTIONS$|^npm_/.test(name)) delete env[name]
    if (vsix !== undefined)
      await ended(
        spawn(node, [server, ...places, '--config', '/dev/null', '--install-extension', vsix], { env, stdio: 'ignore' }),
      )
    this.#server = spawn(
      node,
      [
        server,
        '--bind-addr',
        '127.0.0.1:0',
        '--auth',
        'none',
        '--config',
        '/dev/null',
        ...places,
        '--disable-telemetry',
        '--disable-update-check',
        ...(trust ? [] : ['--disable-workspace-trust']),
        '--disable-getting-started-override',
        '--vscode-option',
        'enable-smoke-test-driver',
      ],
      { env, stdio: ['ignore', 'pipe', 'pipe'] },
    )
    const log = createWriteStream(join(folder, 'server.log'))
    this.#server.stdout.pipe(log)
    this.#server.stderr.pipe(log, { end: false })
    this.port = await portOf(this.#server)
    this.#browser = await chromium.launch({
      executablePath,
      headless: true,
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
    this.#context = await this.#browser.newContext({ viewport })
    this.#context.setDefaultTimeout(patience)
  }

  /** An empty folder that is removed with the host. */
  makeFolder(name) {
    const path = join(this.#folder, name)
    mkdirSync(path, { recursive: true })
    return path
  }

  /** A window on a folder, for tests that drive it from outside. */
  async open(workspace) {
    const page = await this.#context.newPage()
    await page.goto(`http://127.0.0.1:${this.port}/?folder=${encodeURI(workspace)}`)
    return page
  }

  /**
   * Runs a test module inside the extension host of a window on `opened`, a folder or a .code-workspace; resolves to its exit status
   * and to what it printed. A window that loads itself again runs the module again.
   */
  async runTests({ opened, extension, tests, env, timeout }) {
    const window = await this.#context.newPage()
    const remote = (path) => `vscode-remote://127.0.0.1:${this.port}${path}`
    const payload = [
      ['extensionDevelopmentPath', remote(extension)],
      ['extensionTestsPath', remote(tests)],
      ['extensionEnvironment', JSON.stringify(env)],
    ]
    const lines = []
    let finish
    const exited = new Promise((resolve) => (finish = resolve))
    await window.exposeFunction('codeAutomationLog', (_type, args) => lines.push(format(...args)))
    await window.exposeFunction('codeAutomationExit', (code) => finish(code))
    const place = opened.endsWith('.code-workspace') ? 'workspace' : 'folder'
    await window.goto(
      `http://127.0.0.1:${this.port}/?${place}=${encodeURI(opened)}&payload=${encodeURIComponent(JSON.stringify(payload))}`,
    )
    const timer = setTimeout(() => finish('timeout'), timeout)
    const code = await exited
    clearTimeout(timer)
    return { code, lines }
  }

  async stop() {
    await this.#browser?.close()
    if (this.#server !== undefined && this.#server.exitCode === null && this.#server.signalCode === null) {
      const gone = ended(this.#server)
      this.#server.kill()
      const timer = setTimeout(() => this.#server.kill('SIGKILL'), 5_000)
      await gone
      clearTimeout(timer)
    }
    if (this.#folder !== undefined && process.env.UNSLOTH_KEEP_HOST === undefined)
      rmSync(this.#folder, { recursive: true, force: true, maxRetries: 5 })
  }
}

const ended = (child) => new Promise((resolve) => child.once('exit', resolve))
