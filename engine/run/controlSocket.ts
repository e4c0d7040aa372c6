import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import * as z from 'zod'
import type { ParamsOf, ResultOf, RunRequests } from '#shared/protocol.ts'
import { runRequests } from '#shared/protocol.ts'
import { processIdentitySchema } from '#shared/runState.ts'
import { RpcConnection } from '../rpc/connection.ts'
import { readNames, removeQuietly, writeFileAtomic } from './files.ts'
import { isProcessAlive, thisProcess } from './processInfo.ts'
import { runFiles } from './runFiles.ts'
import { runtimeFolder, socketPathLimit, temporaryRuntimeFolder } from './runtimeFolder.ts'

/** The content of control.json, which only the run's owner can read. */
export const controlFileSchema = processIdentitySchema.extend({
  /** Path of the unix socket or name of the Windows pipe. */
  address: z.string(),
  /** What every client sends first: 64 hexadecimal digits. */
  secret: z.string().regex(/^[0-9a-f]{64}$/),
})
export type ControlFile = z.infer<typeof controlFileSchema>

/** What the trainer does for its clients. A handler may answer before the effect has taken place. */
export type RunControlHandlers = { readonly [K in keyof RunRequests]: Handler<RunRequests[K]> }
type Handler<D> = (params: ParamsOf<D>) => ResultOf<D> | Promise<ResultOf<D>>

/** Milliseconds that a client has to send the secret. */
const handshakeTime = 5_000
const maximumClients = 64
/** Milliseconds that the last answers may take. */
const farewellTime = 500

/** The server behind a run's control socket. It keeps the process alive (a paused run has nothing else): close it at the end. */
export class ControlSocket {
  readonly #dir: string
  readonly #secret = randomBytes(32).toString('hex')
  readonly #handlers: RunControlHandlers
  readonly #sockets = new Set<net.Socket>()
  /** Bytes that a client had been sent when it last asked something: more of them are the answer. */
  readonly #asked = new Map<net.Socket, number>()
  readonly #removeOnExit = (): void => this.#removeFiles()
  #server: net.Server | undefined
  #address = ''
  #timer: NodeJS.Timeout | undefined
  #closed = false

  private constructor(dir: string, handlers: RunControlHandlers) {
    this.#dir = dir
    this.#handlers = handlers
  }

  /**
   * Opens the socket of the run in `dir` and writes control.json. The process must own the run's lock. `checkInterval` is
   * the time between two looks whether the socket file is still there, in milliseconds.
   */
  static async open(dir: string, handlers: RunControlHandlers, checkInterval = 5_000): Promise<ControlSocket> {
    const control = new ControlSocket(dir, handlers)
    await control.#listen(runtimeFolder)
    process.once('exit', control.#removeOnExit)
    if (process.platform !== 'win32') {
      // Logging out may sweep the runtime folder while the run goes on.
      control.#timer = setInterval(() => void control.#ensure(), checkInterval)
      control.#timer.unref()
    }
    return control
  }

  get address(): string {
    return this.#address
  }

  /** Lets answers under way go out, cuts all clients and removes the socket and control.json. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#timer)
    process.removeListener('exit', this.#removeOnExit)
    // The end of a run is often what a client has just asked for.
    const deadline = Date.now() + farewellTime
    while (
      Date.now() < deadline &&
      [...this.#asked].some(([socket, written]) => !socket.destroyed && socket.bytesWritten <= written)
    )
      await new Promise((resolve) => setTimeout(resolve, 2))
    for (const socket of this.#sockets) socket.destroySoon()
    await new Promise<void>((resolve) => (this.#server === undefined ? resolve() : this.#server.close(() => resolve())))
    this.#removeFiles()
  }

  async #listen(folder: () => string): Promise<void> {
    const server = net.createServer((socket) => this.#greet(socket))
    server.maxConnections = maximumClients
    const address = await newAddress(this.#dir, folder)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(address, () => {
        server.removeListener('error', reject)
        server.on('error', () => undefined)
        resolve()
      })
    })
    this.#server?.close()
    this.#server = server
    this.#address = address
    if (process.platform !== 'win32') fs.chmodSync(address, 0o600)
    const file: ControlFile = { ...(await thisProcess()), address, secret: this.#secret }
    writeFileAtomic(join(this.#dir, runFiles.control), `${JSON.stringify(file)}\n`, { mode: 0o600 })
  }

  async #ensure(): Promise<void> {
    if (this.#closed || fs.existsSync(this.#address) || !fs.existsSync(this.#dir)) return
    // The old server ends with its clients; they find the new address in control.json.
    await this.#listen(runtimeFolder).catch(() => this.#listen(temporaryRuntimeFolder).catch(() => undefined))
  }

  /** Reads the secret and its line break; nothing is answered to one who does not know it. */
  #greet(socket: net.Socket): void {
    this.#sockets.add(socket)
    socket.on('close', () => {
      this.#sockets.delete(socket)
      this.#asked.delete(socket)
    })
    socket.on('error', () => socket.destroy())
    socket.setTimeout(handshakeTime, () => socket.destroy())
    const expected = Buffer.from(this.#secret)
    let received = Buffer.alloc(0)
    const onData = (data: Buffer): void => {
      received = Buffer.concat([received, data])
      if (received.length <= expected.length) return
      socket.removeListener('data', onData)
      const matches = timingSafeEqual(received.subarray(0, expected.length), expected)
      if (!matches || received[expected.length] !== 0x0a) {
        socket.destroy()
        return
      }
      socket.setTimeout(0)
      socket.pause()
      if (received.length > expected.length + 1) socket.unshift(received.subarray(expected.length + 1))
      this.#serve(socket)
      socket.resume()
    }
    socket.on('data', onData)
  }

  #serve(socket: net.Socket): void {
    const connection = new RpcConnection({ input: socket, output: socket }, 'the client')
    const noted =
      <P, R>(handler: (params: P) => R | Promise<R>) =>
      (params: P): R | Promise<R> => {
        this.#asked.set(socket, socket.bytesWritten)
        return handler(params)
      }
    connection.onRequest(runRequests.stop, noted(this.#handlers.stop))
    connection.onRequest(runRequests.pause, noted(this.#handlers.pause))
    connection.onRequest(runRequests.resume, noted(this.#handlers.resume))
    connection.onRequest(runRequests.status, noted(this.#handlers.status))
    void connection.closed.then(() => socket.destroy())
    connection.listen()
  }

  #removeFiles(): void {
    if (process.platform !== 'win32') removeQuietly(fs, this.#address)
    removeQuietly(fs, join(this.#dir, runFiles.control))
  }
}

/** An address that nobody listens on: short, and without the path that a user may want to keep private. */
async function newAddress(dir: string, folder: () => string): Promise<string> {
  const name = createHash('sha256')
    .update(`${dir}\0${process.pid}\0${randomBytes(8).toString('hex')}`)
    .digest('hex')
    .slice(0, 16)
  if (process.platform === 'win32') return `\\\\.\\pipe\\unsloth-${name}`
  let parent = folder()
  if (Buffer.byteLength(join(parent, `${name}.sock`)) >= socketPathLimit) parent = temporaryRuntimeFolder()
  await sweepSockets(parent)
  return join(parent, `${name}.sock`)
}

/** Removes the sockets of processes that were killed: nobody answers on them. */
async function sweepSockets(folder: string): Promise<void> {
  const sockets = readNames(folder)
    .filter((name) => name.endsWith('.sock'))
    .map((name) => join(folder, name))
  await Promise.all(
    sockets.map(async (path) => {
      const refused = await new Promise<boolean>((resolve) => {
        const socket = net.connect(path)
        socket.once('connect', () => {
          socket.destroy()
          resolve(false)
        })
        socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
      })
      if (refused) removeQuietly(fs, path)
    }),
  )
}

/** control.json of a run, when its process lives. */
export async function readControlFile(dir: string): Promise<ControlFile | undefined> {
  let value: unknown
  try {
    value = JSON.parse(fs.readFileSync(join(dir, runFiles.control), 'utf8'))
  } catch {
    return undefined
  }
  const parsed = controlFileSchema.safeParse(value)
  if (!parsed.success) return undefined
  return (await isProcessAlive(parsed.data)) === false ? undefined : parsed.data
}
