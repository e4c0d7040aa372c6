import type { ChildProcess } from 'node:child_process'
import { spawn } from 'node:child_process'
import { UnslothError } from '#shared/errors.ts'
import type { GeneratedPiece, RequestDescriptor } from '#shared/protocol.ts'
import { engineNotifications, engineRequests, protocolVersion } from '#shared/protocol.ts'
import { RpcConnection, type RequestOptions } from '../../engine/rpc/connection.ts'
import type { EngineState } from './lifecycle.ts'
import { isDown } from './lifecycle.ts'
import type { EngineLocation } from './location.ts'
import { restartPolicy, type RestartPolicy } from './restartPolicy.ts'

export interface EngineClientOptions {
  /** Called at each start: a changed setting takes effect with the next one. Throws when the engine may not run. */
  readonly locate: () => EngineLocation
  readonly version: string
  readonly cwd: string
  /** Variables that must not be seen anywhere but in the process: its token for the Hub. */
  readonly secrets?: () => Promise<Readonly<Record<string, string>>>
  /** Each line that the process prints to its error stream, and what happens to the process. */
  readonly log: (line: string) => void
  /** Milliseconds without a request after which the process is ended: it keeps a model in memory. */
  readonly idleTimeout?: number
  readonly policy?: RestartPolicy
}

interface Live {
  readonly child: ChildProcess
  readonly connection: RpcConnection
  /** Resolves when the process has gone and its end has been taken note of. */
  readonly gone: Promise<void>
}

/** Lines of the error stream that are kept for the message of a crash. */
const keptLines = 20

/**
 * The editor's side of `unsloth serve`: starts the process when something is asked, answers requests, starts it again when it
 * dies in the middle of one (within limits), ends it when idle. Training does not depend on it: runs are processes of their own.
 */
export class EngineClient {
  readonly #options: EngineClientOptions
  readonly #listeners = new Set<(state: EngineState) => void>()
  readonly #pieceListeners = new Map<string, (piece: GeneratedPiece) => void>()
  #state: EngineState = { kind: 'idle' }
  #live: Promise<Live> | undefined
  #policy: RestartPolicy
  #requests = 0
  #idleTimer: NodeJS.Timeout | undefined
  #stderr: string[] = []
  #disposed = false

  constructor(options: EngineClientOptions) {
    this.#options = options
    this.#policy = options.policy ?? restartPolicy()
  }

  get state(): EngineState {
    return this.#state
  }

  onDidChangeState(listener: (state: EngineState) => void): { dispose(): void } {
    this.#listeners.add(listener)
    return { dispose: () => this.#listeners.delete(listener) }
  }

  /** Asks the engine, starting it when need be. */
  async request<P, R>(descriptor: RequestDescriptor<P, R>, params: P, options: RequestOptions = {}): Promise<R> {
    clearTimeout(this.#idleTimer)
    this.#count(1)
    try {
      const { connection } = await this.#start()
      return await connection.request(descriptor, params, options)
    } finally {
      this.#count(-1)
      if (this.#requests === 0) this.#restWhenIdle()
    }
  }

  /** Asks the engine that runs, without starting one and without keeping it awake; undefined when none runs. */
  async peek<P, R>(descriptor: RequestDescriptor<P, R>, params: P): Promise<R | undefined> {
    if (this.#state.kind !== 'running' || this.#live === undefined) return undefined
    const { connection } = await this.#live
    return connection.request(descriptor, params)
  }

  /** Hears the pieces of one `generate` request. */
  onGenerated(id: string, listener: (piece: GeneratedPiece) => void): { dispose(): void } {
    this.#pieceListeners.set(id, listener)
    return { dispose: () => this.#pieceListeners.delete(id) }
  }

  /** Ends the process; the next request starts another one. */
  async stop(): Promise<void> {
    clearTimeout(this.#idleTimer)
    const live = this.#live
    if (live === undefined) {
      if (this.#state.kind === 'crashed') this.#become({ kind: 'idle' })
      return
    }
    this.#become({ kind: 'stopping' })
    this.#live = undefined
    const started = await live.catch(() => undefined)
    if (started !== undefined) await endProcess(started)
    if (this.#state.kind === 'stopping') this.#become({ kind: 'idle' })
  }

  async restart(): Promise<void> {
    await this.stop()
    this.#policy = this.#options.policy ?? restartPolicy()
    await this.#start()
    if (this.#requests === 0) this.#restWhenIdle()
  }

  dispose(): void {
    this.#disposed = true
    void this.stop()
    this.#listeners.clear()
  }

  async #start(): Promise<Live> {
    for (;;) {
      if (this.#disposed) throw new UnslothError('STOPPED', 'the editor is closing')
      this.#live ??= this.#launch().catch((error: unknown) => {
        this.#live = undefined
        throw error
      })
      const live = await this.#live
      if (!live.connection.isClosed) return live
      // Its pipe is closed and its end not told yet; a process that lives on without a pipe is of no use.
      const timer = setTimeout(() => live.child.kill('SIGKILL'), 1_000)
      await live.gone
      clearTimeout(timer)
    }
  }

  async #launch(): Promise<Live> {
    const { version, log, cwd, secrets } = this.#options
    let location: EngineLocation
    let secret: Readonly<Record<string, string>>
    try {
      secret = (await secrets?.()) ?? {}
      location = this.#options.locate()
    } catch (error) {
      this.#fail(error)
      throw error
    }
    this.#become({ kind: 'starting' })
    this.#stderr = []
    log(`starting ${location.execPath} ${location.entry} serve --stdio`)
    const child = spawn(location.execPath, [location.entry, 'serve', '--stdio'], {
      cwd,
      env: { ...process.env, ...location.env, ...secret },
      stdio: ['pipe', 'pipe', 'pipe'],
      windowsHide: true,
    })
    const failed = new Promise<never>((_, reject) => {
      child.once('error', (error) =>
        reject(new UnslothError('NATIVE', `The engine could not be started: ${error.message}`, { cause: error })),
      )
      child.once('exit', (code, signal) => reject(this.#diedEarly(code, signal)))
    })
    failed.catch(() => undefined)
    this.#keepErrors(child)
    const connection = new RpcConnection({ input: child.stdout, output: child.stdin }, 'the engine')
    connection.onNotification(engineNotifications.generated, (piece) => this.#pieceListeners.get(piece.id)?.(piece))
    connection.onNotification(engineNotifications.progress, ({ message }) => log(message))
    connection.listen()
    let markGone: () => void = () => undefined
    const live: Live = { child, connection, gone: new Promise((resolve) => (markGone = resolve)) }
    try {
      const answer = await Promise.race([
        failed,
        connection.request(engineRequests.initialize, { protocolVersion, client: { name: 'vscode', version } }),
      ])
      this.#become({ kind: 'running', pid: answer.pid, version: answer.engineVersion, requests: this.#requests })
    } catch (error) {
      connection.close()
      child.kill()
      // The exit tells more than the broken pipe.
      const cause = (await Promise.race([failed.catch((early: unknown) => early), delay(200)])) ?? error
      this.#fail(cause)
      throw cause
    }
    const end = (code: number | null, signal: NodeJS.Signals | null): void => {
      this.#ended(live, code, signal)
      markGone()
    }
    if (child.exitCode !== null || child.signalCode !== null) end(child.exitCode, child.signalCode)
    else child.once('exit', end)
    return live
  }

  #keepErrors(child: ChildProcess): void {
    let rest = ''
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split(/\r?\n/)
      rest = lines.pop()!
      for (const line of lines) {
        this.#options.log(line)
        this.#stderr = [...this.#stderr.slice(1 - keptLines), line]
      }
    })
  }

  #diedEarly(code: number | null, signal: NodeJS.Signals | null): UnslothError {
    const said = this.#stderr.join('\n').trim()
    const how = signal === null ? `with exit code ${code}` : `by ${signal}`
    return new UnslothError('NATIVE', `The engine ended ${how} while starting${said === '' ? '.' : `: ${said}`}`, {
      hint: 'Its log tells more.',
    })
  }

  /** The process has gone without having been asked to. */
  #ended({ connection }: Live, code: number | null, signal: NodeJS.Signals | null): void {
    connection.close()
    if (this.#state.kind === 'stopping' || this.#disposed) return
    this.#live = undefined
    const how = signal === null ? `with exit code ${code}` : `by ${signal}`
    this.#options.log(`the engine ended ${how}`)
    const error = new UnslothError('NATIVE', `The engine ended unexpectedly ${how}.`, {
      hint: 'Its log tells why. Runs are not affected.',
    })
    const next = this.#policy.next(Date.now())
    if (next === undefined) {
      this.#become({ kind: 'crashed', error })
      return
    }
    this.#policy = next.policy
    this.#become({ kind: 'crashed', error, retryAt: Date.now() + next.delay })
    setTimeout(() => {
      if (this.#disposed || this.#state.kind !== 'crashed') return
      this.#start().then(
        () => this.#requests === 0 && this.#restWhenIdle(),
        () => undefined,
      )
    }, next.delay).unref()
  }

  #fail(error: unknown): void {
    const known = UnslothError.is(error)
      ? error
      : new UnslothError('INTERNAL', error instanceof Error ? error.message : String(error), { cause: error })
    this.#become({ kind: 'crashed', error: known })
  }

  #restWhenIdle(): void {
    clearTimeout(this.#idleTimer)
    if (isDown(this.#state)) return
    this.#idleTimer = setTimeout(() => void this.stop(), this.#options.idleTimeout ?? 600_000)
    this.#idleTimer.unref()
  }

  #count(change: number): void {
    this.#requests += change
    if (this.#state.kind === 'running') this.#become({ ...this.#state, requests: this.#requests })
  }

  #become(state: EngineState): void {
    this.#state = state
    for (const listener of this.#listeners) listener(state)
  }
}

/** Closes the pipe, which the engine takes as goodbye; ends it by force after a second. */
async function endProcess({ child, connection }: Live): Promise<void> {
  connection.close()
  child.stdin?.end()
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise((resolve) => child.once('exit', resolve))
  const timer = setTimeout(() => child.kill('SIGKILL'), 1_000)
  await gone
  clearTimeout(timer)
}

const delay = (milliseconds: number): Promise<undefined> =>
  new Promise((resolve) => setTimeout(() => resolve(undefined), milliseconds))
