interface VsCodeApi {
  postMessage(message: unknown): void
  getState(): unknown
  setState(state: unknown): void
}
declare function acquireVsCodeApi(): VsCodeApi

/** A page's line to the host. The editor hands the underlying object out once. */
export interface HostConnection<Sent, Received, State> {
  send(message: Sent): void
  /** What the page has kept, as it was kept: check it. */
  keptState(): unknown
  keep(state: State): void
  onMessage(listener: (message: Received) => void): void
}

/** Connects to the host. Call it once. */
export function connectToHost<Sent, Received, State>(): HostConnection<Sent, Received, State> {
  const api = acquireVsCodeApi()
  return {
    send: (message) => api.postMessage(message),
    keptState: () => api.getState(),
    keep: (state) => api.setState(state),
    onMessage: (listener) => window.addEventListener('message', (event: MessageEvent<Received>) => listener(event.data)),
  }
}

/** Tells `report` of every error of the page that nobody caught. */
export function reportErrors(report: (message: string) => void): void {
  const fail = (error: unknown): void => report(error instanceof Error ? (error.stack ?? error.message) : String(error))
  window.addEventListener('error', (event) => fail(event.error ?? event.message))
  window.addEventListener('unhandledrejection', (event) => fail(event.reason))
}
