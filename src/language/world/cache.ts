interface Slot<T> {
  value: Promise<T>
  stamp: string
}

/**
 * Answers by key that are kept while their stamp (size and time of a file) is the same. At most `limit` are kept; the oldest
 * goes first.
 */
export class StampedCache<T> {
  private readonly slots = new Map<string, Slot<T>>()
  private readonly limit: number

  constructor(limit = 200) {
    this.limit = limit
  }

  get(key: string, stamp: string, make: () => Promise<T>): Promise<T> {
    const known = this.slots.get(key)
    if (known?.stamp === stamp) return known.value
    const value = make()
    this.slots.delete(key)
    this.slots.set(key, { value, stamp })
    if (this.slots.size > this.limit) this.slots.delete(this.slots.keys().next().value!)
    return value
  }

  clear(): void {
    this.slots.clear()
  }
}

/**
 * One answer that is made again when it is older than `milliseconds`. Who asks meanwhile gets the old one at once; only the first
 * one waits.
 */
export class Refreshed<T> {
  private known: Promise<T> | undefined
  private at = -Infinity
  private making = false
  private readonly make: () => Promise<T>
  private readonly milliseconds: number

  constructor(make: () => Promise<T>, milliseconds: number) {
    this.make = make
    this.milliseconds = milliseconds
  }

  get(): Promise<T> {
    if (this.known === undefined) this.refresh()
    else if (!this.making && performance.now() - this.at > this.milliseconds) this.refresh()
    return this.known!
  }

  /** Has the next question look again; the old answer serves until then. */
  invalidate(): void {
    this.at = -Infinity
  }

  private refresh(): void {
    this.making = true
    const next = this.make().finally(() => {
      this.making = false
    })
    this.at = performance.now()
    if (this.known === undefined) {
      this.known = next
      next.catch(() => {
        this.known = undefined
      })
    } else
      void next.then(
        () => {
          this.known = next
        },
        () => undefined,
      )
  }
}
