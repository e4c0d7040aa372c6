import { spawn, type ChildProcess } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build } from 'esbuild'
import { createMessageConnection, StreamMessageReader, StreamMessageWriter, type MessageConnection } from 'vscode-jsonrpc/node'
import type { Diagnostic, Position } from 'vscode-languageserver'
import { emptyWorkspace, type Workspace } from '../../../src/language/workspace.ts'
import { SourceText } from '../../../src/language/text.ts'

export const root = join(import.meta.dirname, '../../..')

/** A text with its cursor written as `│`. */
export function cursor(marked: string): { source: SourceText; position: Position; offset: number } {
  const offset = marked.indexOf('│')
  const source = new SourceText(marked.replace('│', ''))
  return { source, position: source.position(offset), offset }
}

/** A world that knows a little. */
export function world(parts: Partial<Workspace> = {}): Workspace {
  return { ...emptyWorkspace, ...parts }
}

/** Deterministic generator (mulberry32): a failure can be repeated by its seed. */
export function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below)
  }
}

/** A folder of its own that is removed after the tests of the suite. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-language-'))
  after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** The server as it ships: one bundled module. Made once for all suites of a test process. */
let bundled: Promise<string> | undefined
export function bundleServer(): Promise<string> {
  const file = join(root, 'build', 'test', `languageServer-${process.pid}.mjs`)
  bundled ??= (async () => {
    mkdirSync(dirname(file), { recursive: true })
    await build({
      absWorkingDir: root,
      entryPoints: ['src/language/server.ts'],
      outfile: file,
      bundle: true,
      platform: 'node',
      target: 'node20',
      format: 'esm',
      logLevel: 'error',
      banner: {
        js: "import { createRequire as createRequireOfBundle } from 'node:module'; const require = createRequireOfBundle(import.meta.url);",
      },
    })
    process.once('exit', () => rmSync(file, { force: true }))
    return file
  })()
  return bundled
}

/** A client of the real server over its standard input and output. */
export class Client {
  readonly connection: MessageConnection
  readonly logs: string[] = []
  private readonly process: ChildProcess
  private readonly waiting = new Map<string, (diagnostics: Diagnostic[]) => void>()
  private version = 0

  private constructor(process: ChildProcess) {
    this.process = process
    this.connection = createMessageConnection(new StreamMessageReader(process.stdout!), new StreamMessageWriter(process.stdin!))
    this.connection.onNotification(
      'textDocument/publishDiagnostics',
      ({ uri, version, diagnostics }: { uri: string; version?: number; diagnostics: Diagnostic[] }) => {
        this.waiting.get(`${uri} ${version}`)?.(diagnostics)
      },
    )
    this.connection.onNotification('window/logMessage', ({ message }: { message: string }) => {
      this.logs.push(message)
    })
    this.connection.listen()
  }

  static async start(
    folder: string,
    hubCache = join(folder, 'no-hub'),
    translations: Readonly<Record<string, string>> = {},
  ): Promise<Client> {
    const client = new Client(
      spawn(
        process.execPath,
        [await bundleServer(), '--stdio'],
        // What was measured on this machine must not decide.
        { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, XDG_CACHE_HOME: join(folder, 'no-cache') } },
      ),
    )
    await client.request('initialize', {
      processId: process.pid,
      rootUri: null,
      capabilities: {},
      initializationOptions: { hubCache, translations },
      workspaceFolders: [{ uri: pathToFileURL(folder).href, name: 'workspace' }],
    })
    await client.connection.sendNotification('initialized', {})
    return client
  }

  request<T>(method: string, params: object): Promise<T> {
    return this.connection.sendRequest(method, params)
  }

  /** Opens a text, or replaces the one that is open; resolves to its problems. */
  async show(uri: string, text: string, wanted: (diagnostics: Diagnostic[]) => boolean = () => true): Promise<Diagnostic[]> {
    const version = ++this.version
    const problems = new Promise<Diagnostic[]>((resolve) =>
      this.waiting.set(`${uri} ${version}`, (diagnostics) => {
        if (wanted(diagnostics)) resolve(diagnostics)
      }),
    )
    if (this.shown.has(uri))
      await this.connection.sendNotification('textDocument/didChange', {
        textDocument: { uri, version },
        contentChanges: [{ text }],
      })
    else
      await this.connection.sendNotification('textDocument/didOpen', {
        textDocument: { uri, languageId: 'finetune-yaml', version, text },
      })
    this.shown.add(uri)
    return problems
  }

  private readonly shown = new Set<string>()

  async stop(): Promise<number | null> {
    const ended = new Promise<number | null>((resolve) => this.process.once('exit', resolve))
    await this.request('shutdown', {})
    await this.connection.sendNotification('exit')
    const code = await ended
    this.connection.dispose()
    return code
  }
}
