/** What was asked of a living run. `now` ends it between two commands; the others take effect after the step in progress. */
export type ControlRequest = 'none' | 'stopNow' | 'stopAndSave' | 'pause'

/** Requests from the terminal and the control socket, as the training loop sees them. */
export class RunControl {
  private current: ControlRequest = 'none'
  private wake: (() => void) | undefined
  /** Called when the run is to stop: at once, or after the present step. */
  onStop: ((request: 'stopNow' | 'stopAndSave') => void) | undefined

  get request(): ControlRequest {
    return this.current
  }

  stop(save: boolean): void {
    if (this.current === 'stopNow') return
    const request = save ? 'stopAndSave' : 'stopNow'
    this.current = request
    this.onStop?.(request)
    this.wake?.()
  }

  pause(): void {
    if (this.current === 'none') this.current = 'pause'
  }

  /** Ends a pause, or takes a request for one back. */
  resume(): void {
    if (this.current === 'pause') this.current = 'none'
    this.wake?.()
  }

  /** Settles when a paused run was told to go on or to stop. */
  async whilePaused(): Promise<void> {
    while (this.current === 'pause') await new Promise<void>((resolve) => (this.wake = resolve))
    this.wake = undefined
  }
}
