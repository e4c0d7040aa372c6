import type { UnslothError } from '#shared/errors.ts'

/** What the engine's process is doing. */
export type EngineState =
  | { readonly kind: 'idle' }
  | { readonly kind: 'starting' }
  | { readonly kind: 'running'; readonly pid: number; readonly version: string; readonly requests: number }
  | { readonly kind: 'stopping' }
  /** Died; `retryAt` is the time of the next start, absent when it will not be started again by itself. */
  | { readonly kind: 'crashed'; readonly error: UnslothError; readonly retryAt?: number }

/** Whether a request may start the process. */
export const isDown = (state: EngineState): boolean => state.kind === 'idle' || state.kind === 'crashed'
