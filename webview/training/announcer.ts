import { h } from '../dom.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { fill } from '#shared/panelStrings.ts'
import type { RunInfo } from '#shared/panelProtocol.ts'
import { announcement } from './runFacts.ts'

/** Milliseconds between two progress reports: more would talk over the reader. */
const progressInterval = 30_000

/** Tells users of screen readers how the run goes: changes of state at once, progress now and then. */
export class Announcer {
  readonly element = h('div', { class: 'sr-only', role: 'status', 'aria-live': 'polite' })
  readonly #strings: PanelStrings
  #state = ''
  #last = -Infinity

  constructor(strings: PanelStrings) {
    this.#strings = strings
  }

  say(text: string): void {
    this.element.textContent = text
  }

  progress(info: RunInfo): void {
    const state = `${info.id}/${info.state}`
    const now = performance.now()
    if (state === this.#state && (!info.alive || now - this.#last < progressInterval)) return
    const changed = this.#state !== '' && state !== this.#state && this.#state.startsWith(`${info.id}/`)
    this.#state = state
    this.#last = now
    this.say(
      changed && info.error !== null
        ? fill(this.#strings.announceState, announcement(info, this.#strings), info.error.message)
        : announcement(info, this.#strings),
    )
  }
}
