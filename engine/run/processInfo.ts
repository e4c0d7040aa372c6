import { execFile } from 'node:child_process'
import { readFileSync, readlinkSync } from 'node:fs'
import { promisify } from 'node:util'
import type { ProcessIdentity } from '#shared/runState.ts'
import { errorCode, thisHost } from './files.ts'

const execute = promisify(execFile)

/** One process as Linux shows it in /proc/<pid>/stat. */
export interface ProcessStat {
  readonly parent: number
  readonly group: number
  readonly session: number
  /** Clock ticks since boot. */
  readonly startTime: string
  /** Dead, waiting to be collected by its parent. */
  readonly zombie: boolean
}

/** Fields 3, 4, 5, 6 and 22 of /proc/<pid>/stat (proc(5)); undefined when there is no such process. */
export function readProcStat(pid: number): ProcessStat | undefined {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // The second field is the name in brackets, which can hold anything.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  const state = fields[0] ?? ''
  return {
    parent: Number(fields[1]),
    group: Number(fields[2]),
    session: Number(fields[3]),
    startTime: fields[19] ?? '',
    zombie: state === 'Z' || state === 'X',
  }
}

function exists(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return errorCode(error) === 'EPERM'
  }
}

/** When the process started, as text that differs for a later process of the same pid; undefined: there is none; '': unknown. */
export async function processStartTime(pid: number): Promise<string | undefined> {
  if (process.platform === 'linux') {
    const stat = readProcStat(pid)
    return stat === undefined || stat.zombie ? undefined : stat.startTime
  }
  if (!exists(pid)) return undefined
  try {
    if (process.platform === 'win32') {
      const script = `(Get-Process -Id ${pid}).StartTime.ToFileTimeUtc()`
      const call = ['-NoProfile', '-NonInteractive', '-Command', script]
      const { stdout } = await execute('powershell.exe', call, { windowsHide: true })
      return stdout.trim()
    }
    const { stdout } = await execute('ps', ['-o', 'stat=,lstart=', '-p', String(pid)], { env: { ...process.env, LC_ALL: 'C' } })
    const [state = '', ...start] = stdout.trim().split(/\s+/)
    return state.startsWith('Z') ? undefined : start.join(' ')
  } catch {
    return exists(pid) ? '' : undefined
  }
}

/** Two processes see each other's pids only under one kernel and in one pid name space (containers have their own). */
function machineIdentity(): string {
  if (process.platform !== 'linux') return `${process.platform}:${thisHost()}`
  try {
    return `${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()}:${readlinkSync('/proc/self/ns/pid')}`
  } catch {
    return `linux:${thisHost()}`
  }
}

let own: Promise<ProcessIdentity> | undefined

/** This process, as heartbeats and locks name it. */
export function thisProcess(): Promise<ProcessIdentity> {
  own ??= processStartTime(process.pid).then((startTime) => ({
    host: thisHost(),
    machine: machineIdentity(),
    pid: process.pid,
    startTime: startTime ?? '',
  }))
  return own
}

/** Whether the process still exists; undefined when it cannot be looked up from here. */
export async function isProcessAlive(identity: ProcessIdentity): Promise<boolean | undefined> {
  const here = await thisProcess()
  if (identity.machine !== here.machine) return undefined
  const startTime = await processStartTime(identity.pid)
  if (startTime === undefined) return false
  return startTime === '' || identity.startTime === '' || startTime === identity.startTime
}
