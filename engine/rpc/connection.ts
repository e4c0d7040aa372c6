import type { Readable, Writable } from 'node:stream'
import type { CancellationToken, MessageConnection } from 'vscode-jsonrpc/node'
import {
  CancellationTokenSource,
  createMessageConnection,
  ErrorCodes,
  ResponseError,
  StreamMessageReader,
  StreamMessageWriter,
} from 'vscode-jsonrpc/node'
import type { ErrorCode } from '#shared/errors.ts'
import { errorCodes, UnslothError } from '#shared/errors.ts'
import type { ErrorData, NotificationDescriptor, RequestDescriptor } from '#shared/protocol.ts'

/** The two directions of a connection: a pair of pipes, or one socket twice. */
export interface Transport {
  readonly input: Readable
  readonly output: Writable
}

export interface RequestContext {
  /** Aborted when the caller cancels the request or goes away. */
  readonly signal: AbortSignal
}

export interface RequestOptions {
  /** Cancels the request: the callee is told, and the call rejects with STOPPED unless the answer was already there. */
  readonly signal?: AbortSignal
}

/** JSON-RPC's own number for an answer to a cancelled request, as in the Language Server Protocol. */
const requestCancelled = -32800
const applicationError = -32000
/** Milliseconds between the end of a stream and the end of its connection. */
const lastMessagesTime = 20

/** A JSON-RPC connection whose messages are the descriptors of shared/protocol.ts and whose errors are UnslothErrors. */
export class RpcConnection {
  readonly #connection: MessageConnection
  readonly #peer: string
  readonly #running = new Set<AbortController>()
  readonly #closed: Promise<void>
  #markClosed: () => void = () => undefined
  #isClosed = false

  /** `peer` names the other side in messages: "the engine", "the run". Register handlers, then call `listen()`. */
  constructor(transport: Transport, peer: string) {
    this.#peer = peer
    const { input, output } = transport
    // A peer that goes away while something is written to it is an end, not a failure.
    input.on('error', () => this.close())
    output.on('error', () => this.close())
    output.on('close', () => this.#closeSoon())
    this.#closed = new Promise((resolve) => (this.#markClosed = resolve))
    this.#connection = createMessageConnection(new StreamMessageReader(input), new StreamMessageWriter(output), {
      error: () => undefined,
      warn: () => undefined,
      info: () => undefined,
      log: () => undefined,
    })
    this.#connection.onClose(() => this.#closeSoon())
    // A stream that is not the protocol cannot be understood from there on.
    this.#connection.onError(() => this.close())
    input.on('end', () => this.#closeSoon())
  }

  /** The other side has gone; what it sent before is still to be read, message by message. */
  #closeSoon(): void {
    setTimeout(() => this.close(), lastMessagesTime)
  }

  /** Resolves when the connection has ended, from whichever side. */
  get closed(): Promise<void> {
    return this.#closed
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  /** Begins to read. */
  listen(): this {
    this.#connection.listen()
    return this
  }

  /** Ends the connection: requests under way are aborted on this side and rejected for the callers. */
  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    for (const controller of this.#running) controller.abort()
    this.#connection.end()
    this.#connection.dispose()
    this.#markClosed()
  }

  /** Asks the other side. */
  async request<P, R>(descriptor: RequestDescriptor<P, R>, params: P, options: RequestOptions = {}): Promise<R> {
    const { signal } = options
    if (this.#isClosed) throw this.#gone(descriptor.method)
    if (signal?.aborted) throw new UnslothError('STOPPED', `${descriptor.method} was cancelled`)
    const source = new CancellationTokenSource()
    const cancel = (): void => source.cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    try {
      return await this.#connection.sendRequest<R>(descriptor.method, params, source.token)
    } catch (error) {
      throw this.#received(error, descriptor.method)
    } finally {
      signal?.removeEventListener('abort', cancel)
      source.dispose()
    }
  }

  /** Tells the other side; lost silently when it is gone. */
  notify<P>(descriptor: NotificationDescriptor<P>, params: P): void {
    if (this.#isClosed) return
    this.#connection.sendNotification(descriptor.method, params).catch(() => this.close())
  }

  /** Answers requests of this kind. What the handler throws arrives at the caller with its code and hint. */
  onRequest<P, R>(descriptor: RequestDescriptor<P, R>, handler: (params: P, context: RequestContext) => R | Promise<R>): void {
    this.#connection.onRequest(descriptor.method, async (params: P, token: CancellationToken) => {
      const controller = new AbortController()
      this.#running.add(controller)
      const subscription = token.onCancellationRequested(() => controller.abort())
      if (token.isCancellationRequested) controller.abort()
      try {
        return await handler(params, { signal: controller.signal })
      } catch (error) {
        return toResponseError(error, controller.signal.aborted)
      } finally {
        subscription.dispose()
        this.#running.delete(controller)
      }
    })
  }

  onNotification<P>(descriptor: NotificationDescriptor<P>, handler: (params: P) => void): void {
    this.#connection.onNotification(descriptor.method, handler)
  }

  #gone(method: string): UnslothError {
    return new UnslothError('INTERNAL', `${this.#peer} has ended before it answered ${method}`, { hint: 'Its log tells why.' })
  }

  #received(error: unknown, method: string): unknown {
    if (!(error instanceof ResponseError)) return this.#isClosed ? this.#gone(method) : error
    if (
      error.code === ErrorCodes.PendingResponseRejected ||
      error.code === ErrorCodes.ConnectionInactive ||
      error.code === ErrorCodes.MessageWriteError
    )
      return this.#gone(method)
    if (error.code === requestCancelled) return new UnslothError('STOPPED', `${method} was cancelled`)
    if (error.code === ErrorCodes.MethodNotFound) {
      const hint = 'Its version differs from this one; restart it.'
      return new UnslothError('INTERNAL', `${this.#peer} does not know ${method}`, { hint })
    }
    const data = error.data as Partial<ErrorData> | undefined
    const code = errorCodes.find((known) => known === data?.code) ?? ('INTERNAL' satisfies ErrorCode)
    return new UnslothError(code, error.message, { ...(typeof data?.hint === 'string' ? { hint: data.hint } : {}), cause: error })
  }
}

function toResponseError(error: unknown, cancelled: boolean): ResponseError<ErrorData> {
  if (error instanceof UnslothError) {
    if (cancelled && error.code === 'STOPPED') return new ResponseError(requestCancelled, error.message)
    const hint = error.hint === undefined ? {} : { hint: error.hint }
    return new ResponseError(applicationError, error.message, { code: error.code, ...hint })
  }
  if (cancelled) return new ResponseError(requestCancelled, 'cancelled')
  return new ResponseError(applicationError, error instanceof Error ? error.message : String(error), { code: 'INTERNAL' })
}
