/** Ends a stream of text before the first of several stop strings; holds back what may be the beginning of one. */
export class StopMatcher {
  private readonly stops: readonly string[]
  private held = ''
  private found = false

  constructor(stops: readonly string[]) {
    this.stops = stops.filter((stop) => stop !== '')
  }

  get matched(): boolean {
    return this.found
  }

  /** The text that is certainly before any stop string. */
  push(piece: string): string {
    if (this.found) return ''
    this.held += piece
    const first = this.stops
      .map((stop) => this.held.indexOf(stop))
      .filter((at) => at >= 0)
      .sort((a, b) => a - b)[0]
    if (first !== undefined) {
      this.found = true
      const text = this.held.slice(0, first)
      this.held = ''
      return text
    }
    const keep = Math.max(0, ...this.stops.map((stop) => this.overlap(stop)))
    const text = this.held.slice(0, this.held.length - keep)
    this.held = this.held.slice(this.held.length - keep)
    return text
  }

  /** What was held back, when no more text comes. */
  end(): string {
    const text = this.held
    this.held = ''
    return text
  }

  /** Longest end of the held text that begins this stop string. */
  private overlap(stop: string): number {
    for (let length = Math.min(stop.length - 1, this.held.length); length > 0; --length)
      if (this.held.endsWith(stop.slice(0, length))) return length
    return 0
  }
}
