import { freemem, totalmem } from 'node:os'
import { join } from 'node:path'
import { controlGroups, readText, type ReadText } from './controlGroups.ts'

/** Part of the free memory that a plan may take; the rest is for the files' cache, the tokenizer and everything else. */
export const usableShare = 0.9

const number = (text: string | undefined): number | undefined =>
  text !== undefined && /^\s*\d+\s*$/.test(text) ? Number(text) : undefined

/** What a control group still lets this process have: its limit less what is in use and cannot be dropped. */
function* room(read: ReadText): Generator<{ limit: number; free: number }> {
  for (const { folder, version } of controlGroups('memory', read)) {
    const limit = number(read(join(folder, version === 2 ? 'memory.max' : 'memory.limit_in_bytes')))
    const used = number(read(join(folder, version === 2 ? 'memory.current' : 'memory.usage_in_bytes')))
    if (limit === undefined || used === undefined) continue
    const dropped = /^(?:total_)?inactive_file (\d+)$/m.exec(read(join(folder, 'memory.stat')) ?? '')?.[1]
    yield { limit, free: Math.max(0, limit - used + Number(dropped ?? 0)) }
  }
}

/** Bytes of memory that can be had without pushing other programs out, within the limits of the control groups. */
export function availableMemory(read: ReadText = readText): number {
  const kilobytes = /^MemAvailable:\s+(\d+) kB$/m.exec(read('/proc/meminfo') ?? '')?.[1]
  const machine = kilobytes === undefined ? freemem() : Number(kilobytes) * 1024
  return Math.min(machine, ...[...room(read)].map(({ free }) => free))
}

/** Bytes of memory of the machine, or of the control group when that has less. */
export function totalMemory(read: ReadText = readText): number {
  return Math.min(totalmem(), ...[...room(read)].map(({ limit }) => limit))
}
