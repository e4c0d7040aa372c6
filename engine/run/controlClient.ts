import net from 'node:net'
import { UnslothError } from '#shared/errors.ts'
import type { RunControlResult } from '#shared/protocol.ts'
import { runRequests } from '#shared/protocol.ts'
import type { RunStatus } from '#shared/runState.ts'
import { hasEnded } from '#shared/runState.ts'
import { RpcConnection } from '../rpc/connection.ts'
import { readControlFile } from './controlSocket.ts'
import { thisHost } from './files.ts'
import { RunReader } from './runReader.ts'

/** A client of a living run. Close it when done: it keeps this process alive. */
export interface RunControl {
  stop(options: { readonly save: boolean }): Promise<RunControlResult>
  pause(): Promise<RunControlResult>
  resume(): Promise<RunControlResult>
  status(): Promise<RunStatus>
  /** Resolves when the run's process has gone. */
  readonly closed: Promise<void>
  close(): void
}

/** Connects to the process that works on the run in `dir`; a RUN_INVALID error says why there is none to talk to. */
export async function connectToRun(dir: string): Promise<RunControl> {
  const control = await readControlFile(dir)
  if (control === undefined) throw await notAlive(dir)
  const socket = net.connect(control.address)
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
  } catch (error) {
    socket.destroy()
    throw await notAlive(dir, error)
  }
  socket.write(`${control.secret}\n`)
  const connection = new RpcConnection({ input: socket, output: socket }, 'the run').listen()
  void connection.closed.then(() => socket.destroy())
  return {
    stop: (options) => connection.request(runRequests.stop, { save: options.save }),
    pause: () => connection.request(runRequests.pause, {}),
    resume: () => connection.request(runRequests.resume, {}),
    status: () => connection.request(runRequests.status, {}),
    closed: connection.closed,
    close: () => connection.close(),
  }
}

/** Asks one thing of a run and hangs up. */
export async function withRun<T>(dir: string, ask: (control: RunControl) => Promise<T>): Promise<T> {
  const control = await connectToRun(dir)
  try {
    return await ask(control)
  } finally {
    control.close()
  }
}

async function notAlive(dir: string, cause?: unknown): Promise<UnslothError> {
  const { state, alive, heartbeat, resumable } = await RunReader.open(dir).view()
  const detail = cause === undefined ? {} : { cause }
  if (alive && heartbeat !== undefined && heartbeat.host !== thisHost()) {
    const where = `the run works on ${heartbeat.host}; it can be controlled only from there.`
    return new UnslothError('RUN_INVALID', `${dir}: ${where}`, detail)
  }
  if (alive) {
    return new UnslothError('RUN_INVALID', `${dir}: the run's process ${heartbeat?.pid} does not listen (yet).`, {
      hint: 'Try again in a moment.',
      ...detail,
    })
  }
  const what = hasEnded(state) ? `the run has ended (${state})` : `no process works on the run (${state})`
  const hint = resumable ? { hint: 'Resume it from its newest checkpoint.' } : {}
  return new UnslothError('RUN_INVALID', `${dir}: ${what}.`, { ...hint, ...detail })
}
