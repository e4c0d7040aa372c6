// A VS Code window under control: code-server as the editor, Chromium as its screen.
import { spawn } from 'node:child_process'
import { createWriteStream, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { get } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { format } from 'node:util'
import { chromium } from 'playwright-core'
import { installHost } from './install.mjs'

const quietSettings = {
  'telemetry.telemetryLevel': 'off', 'workbench.startupEditor': 'none', 'extensions.autoUpdate': false, 'extensions.autoCheckUpdates': false,
  'update.mode': 'none', 'chat.disableAIFeatures': true, 'git.enabled': false, 'files.simpleDialog.enable': true, 'window.restoreWindows': 'none',
  'workbench.tips.enabled': false, 'workbench.enableExperiments': false, 'editor.accessibilitySupport': 'off',
}

const freePort = () => new Promise((resolve, reject) => {
  const server = createServer().on('error', reject).listen(0, '127.0.0.1', () => {
    const { port } = server.address()
    server.close(() => resolve(port))
  })
})

const answers = (port) => new Promise((resolve) => {
  get({ host: '127.0.0.1', port, path: '/healthz' }, (response) => {
    response.resume()
    resolve(response.statusCode === 200)
  }).on('error', () => resolve(false))
})

export class Host {
  #server
  #browser
  #context
  #folder

  /** `trust`: workspaces have to be trusted, and are not. `vsix`: an extension package to install. */
  static async start({ trust = false, vsix, settings = {}, viewport = { width: 1400, height: 900 } } = {}) {
    const host = new Host()
    try {
      await host.#start({ trust, vsix, settings, viewport })
      return host
    } catch (error) {
      await host.stop()
      throw error
    }
  }

  async #start({ trust, vsix, settings, viewport }) {
    const { node, server, chromium: executablePath } = installHost()
    const folder = (this.#folder = mkdtempSync(join(tmpdir(), 'unsloth-host-')))
    this.port = await freePort()
    mkdirSync(join(folder, 'data', 'User'), { recursive: true })
    writeFileSync(join(folder, 'data', 'User', 'settings.json'), JSON.stringify({
      ...quietSettings, 'security.workspace.trust.enabled': trust, 'security.workspace.trust.startupPrompt': 'never', 'security.workspace.trust.banner': 'never', ...settings,
    }))
    const places = ['--user-data-dir', join(folder, 'data'), '--extensions-dir', join(folder, 'extensions')]
    const env = { ...process.env, EXTENSIONS_GALLERY: '{}' }
    // The editor of somebody who runs the tests in its terminal is not this one.
    for (const name of Object.keys(env)) if (/^VSCODE_|^NODE_OPTIONS$|^npm_/.test(name)) delete env[name]
    if (vsix !== undefined) await ended(spawn(node, [server, ...places, '--config', '/dev/null', '--install-extension', vsix], { env, stdio: 'ignore' }))
    this.#server = spawn(node, [
      server, '--bind-addr', `127.0.0.1:${this.port}`, '--auth', 'none', '--config', '/dev/null', ...places, '--disable-telemetry', '--disable-update-check',
      ...(trust ? [] : ['--disable-workspace-trust']), '--disable-getting-started-override', '--vscode-option', 'enable-smoke-test-driver',
    ], { env, stdio: ['ignore', 'pipe', 'pipe'] })
    const log = createWriteStream(join(folder, 'server.log'))
    this.#server.stdout.pipe(log)
    this.#server.stderr.pipe(log, { end: false })
    let gone = false
    this.#server.once('exit', () => (gone = true))
    for (const until = Date.now() + 60_000; !(await answers(this.port));) {
      if (gone || Date.now() > until) throw new Error(`code-server does not answer: ${readFileSync(join(folder, 'server.log'), 'utf8').slice(-2000)}`)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    this.#browser = await chromium.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] })
    this.#context = await this.#browser.newContext({ viewport })
  }

  /** An empty folder that is removed with the host. */
  makeFolder(name) {
    const path = join(this.#folder, name)
    mkdirSync(path, { recursive: true })
    return path
  }

  get dataFolder() {
    return join(this.#folder, 'data')
  }

  /** A window on a folder, for tests that drive it from outside. */
  async open(workspace) {
    const page = await this.#context.newPage()
    await page.goto(`http://127.0.0.1:${this.port}/?folder=${encodeURI(workspace)}`)
    return page
  }

  /**
   * Runs a test module inside the extension host of a window on `workspace`; resolves to what it wrote into its result file. `page`:
   * an earlier window, which is loaded again. `during` drives the window meanwhile.
   */
  async runTests({ workspace, extension, tests, env = {}, page, timeout = 300_000, during }) {
    const window = page ?? (await this.#context.newPage())
    const result = join(this.#folder, `result-${env.UNSLOTH_HOST_PHASE ?? 'tests'}.json`)
    const remote = (path) => `vscode-remote://127.0.0.1:${this.port}${path}`
    const payload = [
      ['extensionDevelopmentPath', remote(extension)], ['extensionTestsPath', remote(tests)],
      ['extensionEnvironment', JSON.stringify({ ...env, UNSLOTH_HOST_RESULT: result })],
    ]
    const lines = []
    let finish
    const exited = new Promise((resolve) => (finish = resolve))
    if (page === undefined) {
      this.outcome = { finish, lines }
      await window.exposeFunction('codeAutomationLog', (_type, args) => this.outcome.lines.push(format(...args)))
      await window.exposeFunction('codeAutomationExit', (code) => this.outcome.finish(code))
    } else this.outcome = { finish, lines }
    await window.goto(`http://127.0.0.1:${this.port}/?folder=${encodeURI(workspace)}&payload=${encodeURIComponent(JSON.stringify(payload))}`)
    const timer = setTimeout(() => finish('timeout'), timeout)
    const code = await Promise.race([exited, ...(during === undefined ? [] : [during(window).then(() => exited)])])
    clearTimeout(timer)
    if (!existsSync(result)) throw new Error(`The tests in VS Code ended without a result (${code}):\n${lines.slice(-40).join('\n')}`)
    return { page: window, code, lines, results: JSON.parse(readFileSync(result, 'utf8')) }
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
    if (this.#folder !== undefined && process.env.UNSLOTH_KEEP_HOST === undefined) rmSync(this.#folder, { recursive: true, force: true, maxRetries: 5 })
  }
}

const ended = (child) => new Promise((resolve) => child.once('exit', resolve))
