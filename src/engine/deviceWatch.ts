import { engineRequests, type DeviceEntry } from '#shared/protocol.ts'
import type { EngineClient } from './engineClient.ts'

/** Milliseconds between two looks at the devices. */
const pace = 5_000

/** Knows the devices and their free memory while an engine runs: asks it after each request, without keeping it awake. */
export class DeviceWatch {
  readonly #engine: EngineClient
  readonly #listeners = new Set<(devices: readonly DeviceEntry[] | undefined) => void>()
  readonly #subscription: { dispose(): void }
  #devices: readonly DeviceEntry[] | undefined
  #looked = -Infinity
  #timer: NodeJS.Timeout | undefined

  constructor(engine: EngineClient) {
    this.#engine = engine
    this.#subscription = engine.onDidChangeState((state) => {
      if (state.kind !== 'running') this.#become(undefined)
      else if (state.requests === 0) this.#lookSoon()
    })
  }

  /** Undefined while no engine runs. */
  get devices(): readonly DeviceEntry[] | undefined {
    return this.#devices
  }

  onDidChange(listener: (devices: readonly DeviceEntry[] | undefined) => void): { dispose(): void } {
    this.#listeners.add(listener)
    return { dispose: () => this.#listeners.delete(listener) }
  }

  dispose(): void {
    clearTimeout(this.#timer)
    this.#subscription.dispose()
    this.#listeners.clear()
  }

  #lookSoon(): void {
    if (this.#timer !== undefined) return
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined
        void this.#look()
      },
      Math.max(0, this.#looked + pace - Date.now()),
    )
    this.#timer.unref()
  }

  async #look(): Promise<void> {
    this.#looked = Date.now()
    // An engine without the request, or one that ends meanwhile, tells nothing.
    const found = await this.#engine.peek(engineRequests.devices, {}).catch(() => undefined)
    if (found !== undefined) this.#become(found.devices)
  }

  #become(devices: readonly DeviceEntry[] | undefined): void {
    if (devices === undefined && this.#devices === undefined) return
    this.#devices = devices
    for (const listener of this.#listeners) listener(devices)
  }
}
