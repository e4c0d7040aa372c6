import type { PanelStrings } from '#shared/panelStrings.ts'
import { fill } from '#shared/panelStrings.ts'
import { formatCount } from '#shared/units.ts'
import type { CheckboxControl } from '../controls.ts'
import { checkbox, iconButton } from '../controls.ts'
import { h, icon, setAttribute, setText } from '../dom.ts'
import type { ShownRun } from './panelModel.ts'
import { lossText, stateIcons } from './runFacts.ts'

export interface LegendOptions {
  readonly strings: PanelStrings
  readonly select: (id: string) => void
  readonly setShown: (id: string, shown: boolean) => void
  readonly remove: (id: string) => void
}

interface Row {
  readonly element: HTMLElement
  readonly shown: CheckboxControl
  readonly name: HTMLButtonElement
  readonly state: HTMLElement
  readonly text: HTMLElement
}

/** The runs that are laid over each other: colour, what they do, shown or not. Hidden while there is only one. */
export class Legend {
  readonly element: HTMLElement
  readonly #options: LegendOptions
  #rows = new Map<string, Row>()
  #order = ''

  constructor(options: LegendOptions) {
    this.#options = options
    this.element = h('ul', { class: 'legend', 'aria-label': options.strings.runs, hidden: true })
  }

  show(runs: readonly ShownRun[], hidden: ReadonlySet<string>, selected: string): void {
    this.element.hidden = runs.length < 2
    const order = JSON.stringify(runs.map(({ info }) => [info.id, info.name]))
    if (order !== this.#order) {
      this.#order = order
      this.#rows = new Map(runs.map((run, place) => [run.info.id, this.#row(run, place)]))
      this.element.replaceChildren(...[...this.#rows.values()].map(({ element }) => element))
    }
    const { strings } = this.#options
    for (const { info } of runs) {
      const row = this.#rows.get(info.id)!
      row.shown.set(!hidden.has(info.id))
      row.element.classList.toggle('selected', info.id === selected)
      setAttribute(row.name, 'aria-pressed', String(info.id === selected))
      row.state.className = `codicon codicon-${stateIcons[info.state]}`
      const loss = lossText(info, strings)
      setText(row.text, `${formatCount(info.step)} · ${loss}`)
      setAttribute(row.name, 'aria-label', fill(strings.runSummary, info.name, strings[info.state], formatCount(info.step), loss))
    }
  }

  #row({ info }: ShownRun, place: number): Row {
    const { strings, select, setShown, remove } = this.#options
    const shown = checkbox('', true, (checked) => setShown(info.id, checked))
    setAttribute(shown.element, 'aria-label', fill(strings.showRun, info.name))
    const name = h('button', { type: 'button', class: 'run-name', title: info.id }, info.name)
    name.addEventListener('click', () => select(info.id))
    const state = icon('clock')
    const text = h('span', { class: 'run-text' })
    const element = h(
      'li',
      {},
      shown.element,
      h('span', { class: `swatch colour-${place % 6} dash-${place % 6}`, 'aria-hidden': 'true' }),
      name,
      state,
      text,
      iconButton({ label: fill(strings.removeRun, info.name), icon: 'close', onClick: () => remove(info.id) }),
    )
    return { element, shown, name, state, text }
  }
}
