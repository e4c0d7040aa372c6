import type { ChildProcess } from 'node:child_process'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { join, resolve } from 'node:path'
import type { ErrorCode } from '#shared/errors.ts'
import { errorCodes, UnslothError } from '#shared/errors.ts'
import { fileWriteError } from './files.ts'
import { redact } from './redact.ts'
import { runFiles } from './runFiles.ts'
import { readTail, RunReader } from './runReader.ts'

export interface LaunchOptions {
  /** The engine's script; it is started as `<runtime> <entry> run DIR`. */
  readonly entry: string
  /** The JavaScript runtime; that of this process when absent. */
  readonly execPath?: string
  readonly execArgv?: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  /** Working folder of the run; its own directory when absent, so that it depends on nothing of its parent. */
  readonly cwd?: string
  /** Milliseconds to wait for the first heartbeat. */
  readonly timeout?: number
}

/** A run that has been started and works on its own. */
export interface LaunchedRun {
  readonly dir: string
  readonly pid: number
}

/**
 * Starts the process that works on the run in `dir`: in a session of its own, without a pipe to this one, so that it
 * outlives editor and terminal. Resolves at its first heartbeat. When it ends before that, the error is the one that it
 * left in status.json, else the end of what it printed.
 */
export async function launchRun(dir: string, options: LaunchOptions): Promise<LaunchedRun> {
  const folder = resolve(dir)
  const reader = RunReader.open(folder)
  const attempts = (await reader.status()).attempt
  const child = spawnDetached(folder, options)
  const pid = child.pid
  const ended = exitOf(child)
  if (pid === undefined) {
    const failure = await ended
    throw failure instanceof UnslothError ? failure : new UnslothError('INTERNAL', 'the engine could not be started')
  }
  const { timeout = 30_000 } = options
  const deadline = Date.now() + timeout
  for (;;) {
    const exit = await Promise.race([ended, delay(15)])
    if (exit instanceof UnslothError) throw exit
    // A short run may have come and gone between two looks.
    const begun = reader.heartbeat()?.pid === pid || (await reader.status()).attempt > attempts
    if (exit === undefined ? begun : begun && exit.code === 0) {
      child.unref()
      return { dir: folder, pid }
    }
    if (exit !== undefined) throw await earlyFailure(reader, folder, exit)
    if (Date.now() > deadline) {
      process.kill(pid, 'SIGKILL')
      throw new UnslothError('INTERNAL', `${folder}: the engine has not begun to work within ${timeout / 1000} s.`, {
        hint: `Look into ${join(folder, runFiles.stdout)}.`,
      })
    }
  }
}

interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

function spawnDetached(dir: string, options: LaunchOptions): ChildProcess {
  const path = join(dir, runFiles.stdout)
  let output: number
  try {
    output = fs.openSync(path, 'a')
  } catch (error) {
    throw fileWriteError(error, path)
  }
  try {
    return spawn(options.execPath ?? process.execPath, [...(options.execArgv ?? []), options.entry, 'run', dir], {
      cwd: options.cwd ?? dir,
      detached: true,
      windowsHide: true,
      stdio: ['ignore', output, output],
      env: detachedEnvironment(options.env ?? process.env),
    })
  } finally {
    fs.closeSync(output)
  }
}

/**
 * The environment for a process that outlives the editor: without the variables by which VS Code ties processes to a
 * window, its debugger or its pipes, but with the one that makes its runtime a plain Node.
 */
export function detachedEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept: NodeJS.ProcessEnv = {}
  for (const [name, value] of Object.entries(env)) {
    if (/^VSCODE_/i.test(name) || name === 'NODE_CHANNEL_FD' || name === 'ELECTRON_NO_ATTACH_CONSOLE') continue
    // The debugger attaches itself to every Node process through this one.
    if (name === 'NODE_OPTIONS' && value !== undefined && /js-debug|ms-vscode/.test(value)) continue
    kept[name] = value
  }
  if (process.versions.electron !== undefined) kept.ELECTRON_RUN_AS_NODE = '1'
  return kept
}

function exitOf(child: ChildProcess): Promise<Exit | UnslothError> {
  return new Promise((done) => {
    child.once('error', (error) =>
      done(
        new UnslothError('INTERNAL', `the engine could not be started: ${error.message}`, {
          hint: 'Check that the runtime and the engine are installed.',
          cause: error,
        }),
      ),
    )
    child.once('exit', (code, signal) => done({ code, signal }))
  })
}

async function earlyFailure(reader: RunReader, dir: string, exit: Exit): Promise<UnslothError> {
  const { state, error } = await reader.status()
  if (state === 'failed' && error !== null) {
    const code = errorCodes.find((known) => known === error.code) ?? ('INTERNAL' satisfies ErrorCode)
    return new UnslothError(code, error.message, error.hint === null ? {} : { hint: error.hint })
  }
  const how = exit.signal === null ? `with exit code ${exit.code}` : `by ${exit.signal}`
  const output = redact(await readTail(join(dir, runFiles.stdout), 20))
  const printed = output === '' ? '.' : `:\n${output}`
  return new UnslothError('INTERNAL', `${dir}: the engine ended ${how} before it began to work${printed}`, {
    hint: `All that it printed is in ${join(dir, runFiles.stdout)}.`,
  })
}

const delay = (milliseconds: number): Promise<undefined> =>
  new Promise((resolve) => setTimeout(() => resolve(undefined), milliseconds))
