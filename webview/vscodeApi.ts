import type { FromWebview, PanelState, ToWebview } from '#shared/panelProtocol.ts'

interface VsCodeApi {
  postMessage(message: unknown): void
  getState(): unknown
  setState(state: unknown): void
}
declare function acquireVsCodeApi(): VsCodeApi

/** The page's line to the host. The editor hands the underlying object out once. */
export interface HostConnection {
  send(message: FromWebview): void
  /** What the page has kept, as it was kept: check it. */
  keptState(): unknown
  keep(state: PanelState): void
  onMessage(listener: (message: ToWebview) => void): void
}

/** Connects to the host. Call it once. */
export function connectToHost(): HostConnection {
  const api = acquireVsCodeApi()
  return {
    send: (message) => api.postMessage(message),
    keptState: () => api.getState(),
    keep: (state) => api.setState(state),
    onMessage: (listener) => window.addEventListener('message', (event: MessageEvent<ToWebview>) => listener(event.data)),
  }
}
