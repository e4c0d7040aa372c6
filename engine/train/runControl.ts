/** What was asked of a living run. `now` ends it between two commands; the others take effect after the step in progress. */
export type ControlRequest = 'none' | 'stopNow' | 'stopAndSave' | 'pause'

/** Requests from the terminal and the control socket, as the training loop sees them. */
export class RunControl {
  private current: ControlRequest = 'none'
  private wake: (() => void) | undefined
  /** Called when the computation in progress has to end at once. */
  onStopNow: (() => void) | undefined

  get request(): ControlRequest {
    return this.current
  }

  stop(save: boolean): void {
    if (this.current === 'stopNow') return
    this.current = save ? 'stopAndSave' : 'stopNow'
    if (!save) this.onStopNow?.()
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
