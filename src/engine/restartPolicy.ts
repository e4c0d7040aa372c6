/** How often an engine that dies is started again: an immutable value, so that each start carries its own. */
export interface RestartPolicy {
  /** Milliseconds to wait and the policy for the time after; undefined when it should stay down. */
  next(now: number): { readonly delay: number; readonly policy: RestartPolicy } | undefined
}

/** Up to `limit` restarts within `period` milliseconds, each after twice the wait of the one before. */
export function restartPolicy(limit = 3, period = 180_000, firstDelay = 250, deaths: readonly number[] = []): RestartPolicy {
  return {
    next(now) {
      const recent = [...deaths.filter((time) => now - time < period), now]
      if (recent.length > limit) return undefined
      return { delay: firstDelay * 2 ** (recent.length - 1), policy: restartPolicy(limit, period, firstDelay, recent) }
    },
  }
}
