import { execFile } from 'node:child_process'
import { readNames } from './files.ts'
import { processStartTime, readProcStat } from './processInfo.ts'

interface ProcessRow {
  readonly pid: number
  readonly parent: number
  readonly group: number
}

/**
 * Ends a child of this client with its own children: politely, and after `grace` milliseconds by force. Processes that
 * lead a group of their own are left alone with all below them: detached runs outlive whoever started them.
 */
export async function killTree(pid: number, grace = 2_000): Promise<void> {
  if (process.platform === 'win32') {
    const call = ['/PID', String(pid), '/T', '/F']
    await new Promise<void>((resolve) => execFile('taskkill', call, { windowsHide: true }, () => resolve()))
    return
  }
  const pids = descendants(pid, await processTable())
  const started = new Map<number, string>()
  for (const each of pids) {
    const startTime = await processStartTime(each)
    if (startTime !== undefined) started.set(each, startTime)
  }
  for (const each of started.keys()) signal(each, 'SIGTERM')
  const deadline = Date.now() + grace
  for (;;) {
    for (const [each, startTime] of started) if ((await processStartTime(each)) !== startTime) started.delete(each)
    if (started.size === 0) return
    if (Date.now() >= deadline) break
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  for (const each of started.keys()) signal(each, 'SIGKILL')
}

/** The process and what hangs below it, parents first, without detached ones. */
function descendants(root: number, table: readonly ProcessRow[]): number[] {
  const found = [root]
  // The loop sees what it appends.
  for (const pid of found) {
    for (const row of table) if (row.parent === pid && row.group !== row.pid) found.push(row.pid)
  }
  return found
}

async function processTable(): Promise<ProcessRow[]> {
  if (process.platform === 'linux') {
    return readNames('/proc')
      .filter((name) => /^\d+$/.test(name))
      .flatMap((name) => {
        const stat = readProcStat(Number(name))
        return stat === undefined ? [] : [{ pid: Number(name), parent: stat.parent, group: stat.group }]
      })
  }
  const text = await new Promise<string>((resolve) =>
    execFile('ps', ['-A', '-o', 'pid=,ppid=,pgid='], (_error, stdout) => resolve(stdout)),
  )
  return text
    .trim()
    .split('\n')
    .map((line) => {
      const [pid = 0, parent = 0, group = 0] = line.trim().split(/\s+/).map(Number)
      return { pid, parent, group }
    })
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch {
    // Gone already.
  }
}
