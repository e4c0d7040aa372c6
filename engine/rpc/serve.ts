import { Console } from 'node:console'
import type { Transport, RequestContext } from './connection.ts'
import { RpcConnection } from './connection.ts'
import type { EngineRequests, NotificationDescriptor, ParamsOf, RequestDescriptor, ResultOf } from '#shared/protocol.ts'
import { engineRequests, protocolVersion } from '#shared/protocol.ts'
import { UnslothError } from '#shared/errors.ts'

export interface ServeContext extends RequestContext {
  /** Sends the client a notification, such as a generated token. */
  readonly notify: <P>(descriptor: NotificationDescriptor<P>, params: P) => void
}

type Handler<D> = (params: ParamsOf<D>, context: ServeContext) => ResultOf<D> | Promise<ResultOf<D>>

/** The engine's answers; `initialize` is answered by `serve` itself. */
export type EngineHandlers = { readonly [K in Exclude<keyof EngineRequests, 'initialize'>]?: Handler<EngineRequests[K]> }

export interface ServeOptions {
  readonly engineVersion: string
}

/** Stdin and stdout as a transport. Whatever else prints to stdout from now on goes to stderr, which is the client's log. */
export function stdioTransport(): Transport {
  globalThis.console = new Console({ stdout: process.stderr, stderr: process.stderr })
  return { input: process.stdin, output: process.stdout }
}

/**
 * Answers one client until it disconnects or its pipe is closed, as it is when the client dies; then requests under way
 * are aborted and the promise resolves, and the process should end.
 */
export async function serve(transport: Transport, handlers: EngineHandlers, options: ServeOptions): Promise<void> {
  const connection = new RpcConnection(transport, 'the client')
  const answered = new Map<string, RequestDescriptor<never, unknown>>()
  const register = <P, R>(
    descriptor: RequestDescriptor<P, R>,
    handler: (params: P, context: ServeContext) => R | Promise<R>,
  ): void => {
    answered.set(descriptor.method, descriptor)
    connection.onRequest(descriptor, (params, { signal }) =>
      handler(params, { signal, notify: (kind, value) => connection.notify(kind, value) }),
    )
  }
  register(engineRequests.initialize, (params) => {
    if (params.protocolVersion !== protocolVersion) {
      throw new UnslothError('INTERNAL', `the client speaks protocol ${params.protocolVersion}, this engine ${protocolVersion}`, {
        hint: 'Update both to the same version and reload the window.',
      })
    }
    return {
      protocolVersion,
      engineVersion: options.engineVersion,
      pid: process.pid,
      platform: process.platform,
      arch: process.arch,
      methods: [...answered.keys()],
    }
  })
  if (handlers.plan !== undefined) register(engineRequests.plan, handlers.plan)
  if (handlers.preview !== undefined) register(engineRequests.preview, handlers.preview)
  if (handlers.inspect !== undefined) register(engineRequests.inspect, handlers.inspect)
  if (handlers.generate !== undefined) register(engineRequests.generate, handlers.generate)
  if (handlers.verify !== undefined) register(engineRequests.verify, handlers.verify)
  if (handlers.doctor !== undefined) register(engineRequests.doctor, handlers.doctor)
  if (handlers.devices !== undefined) register(engineRequests.devices, handlers.devices)
  connection.listen()
  await connection.closed
}
