/**
 * Milliseconds of processor time that this process spends on something, threads included: unlike the time of a clock, other work on
 * the machine does not lengthen it.
 */
export async function processorTime(work: () => unknown): Promise<number> {
  const before = process.cpuUsage()
  await work()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1000
}

/**
 * How many times longer than its processor time work takes now, because of other work on the machine; at least 1. For limits on
 * what several processes do together, which only a clock can measure.
 */
export function contention(): number {
  const began = performance.now()
  const before = process.cpuUsage()
  let used = 0
  while (used < 100_000) {
    const { user, system } = process.cpuUsage(before)
    used = user + system
  }
  return Math.max(1, (performance.now() - began) / (used / 1000))
}
