import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { controlGroups, readText, type ReadText } from './controlGroups.ts'

/** The numbers of a list as Linux writes it: "0-3,8" is 0 1 2 3 8. */
export function parseCpuList(text: string): number[] {
  return text
    .trim()
    .split(',')
    .filter((part) => part !== '')
    .flatMap((part) => {
      const [first = NaN, last = first] = part.split('-').map(Number)
      return Array.from({ length: last - first + 1 }, (_, index) => first + index)
    })
}

/** Physical cores among the processors that this process may run on; undefined where the system does not say. */
function coresOfAffinity(read: ReadText): number | undefined {
  const allowed = /^Cpus_allowed_list:\s*(\S+)$/m.exec(read('/proc/self/status') ?? '')?.[1]
  if (allowed === undefined) return undefined
  const cores = new Set<string>()
  for (const cpu of parseCpuList(allowed)) {
    const topology = `/sys/devices/system/cpu/cpu${cpu}/topology`
    const siblings = read(`${topology}/core_cpus_list`) ?? read(`${topology}/thread_siblings_list`)
    if (siblings === undefined) return undefined
    cores.add(siblings.trim())
  }
  return cores.size === 0 ? undefined : cores.size
}

/** Processors' worth of time that the control groups (a container's limit) leave to this process; Infinity without a limit. */
export function cpuQuota(read: ReadText = readText): number {
  let least = Infinity
  for (const { folder, version } of controlGroups('cpu', read)) {
    const [quota, period] =
      version === 2
        ? (read(join(folder, 'cpu.max')) ?? '').trim().split(/\s+/)
        : [read(join(folder, 'cpu.cfs_quota_us')), read(join(folder, 'cpu.cfs_period_us'))]
    // No limit is written as "max" (version 2) or −1 (version 1).
    const share = Number(quota) / Number(period)
    if (Number.isFinite(share) && share > 0) least = Math.min(least, share)
  }
  return least
}

/**
 * Threads worth computing with: one for each physical core that this process may use, and no more than its share of time
 * lasts for, because a throttled thread holds up all others.
 */
export function physicalCores(read: ReadText = readText): number {
  const cores = coresOfAffinity(read) ?? availableParallelism()
  return Math.max(1, Math.min(cores, Math.floor(cpuQuota(read))))
}
