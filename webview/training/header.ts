import type { PanelAction, RunInfo } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { fill } from '#shared/panelStrings.ts'
import { formatCount } from '#shared/units.ts'
import { button, iconButton } from '../controls.ts'
import { h, icon, setAttribute, setText } from '../dom.ts'
import type { ShownRun } from './panelModel.ts'
import type { ActionButton } from './runFacts.ts'
import { actionsOf, factsOfRun, isBusy, lossText, noticesOf, stateIcons } from './runFacts.ts'

export interface HeaderOptions {
  readonly strings: PanelStrings
  readonly act: (action: PanelAction, id: string) => void
}

/** How long a button waits for the run to answer before it can be pressed again, in milliseconds. */
const patience = 15_000

/** The head of the panel: what one run is doing, and what can be done about it. */
export class Header {
  readonly element: HTMLElement
  readonly #options: HeaderOptions
  readonly #icon = icon('clock')
  readonly #state = h('span', { class: 'state-text' })
  readonly #name = h('h1')
  readonly #subject = h('p', { class: 'subject' })
  readonly #loss = h('span', { class: 'loss-value' })
  readonly #facts = h('dl', { class: 'facts' })
  readonly #progress = h('progress', { max: 1 })
  readonly #actions = h('div', { class: 'actions', role: 'group' })
  readonly #files = h('div', { class: 'files', role: 'group' })
  readonly #notices = h('div', { class: 'notices' })
  #shownActions = ''
  #shownNotices = ''
  #shownFacts = ''
  #pending: { readonly id: string; readonly action: PanelAction; readonly state: string; readonly since: number } | undefined
  #complaint: { readonly id: string; readonly text: string } | undefined

  constructor(options: HeaderOptions) {
    this.#options = options
    const { strings } = options
    setAttribute(this.#actions, 'aria-label', strings.runActions)
    setAttribute(this.#files, 'aria-label', strings.runFiles)
    setAttribute(this.#progress, 'aria-label', strings.progress)
    this.element = h(
      'header',
      { class: 'run-header' },
      h(
        'div',
        { class: 'title-row' },
        h('div', { class: 'title' }, this.#name, h('p', { class: 'state' }, this.#icon, this.#state), this.#subject),
        this.#files,
      ),
      h(
        'div',
        { class: 'figures' },
        h('div', { class: 'loss' }, h('span', { class: 'loss-label' }, strings.loss), this.#loss),
        this.#facts,
      ),
      this.#progress,
      this.#actions,
      this.#notices,
    )
  }

  /** Shows a run. `now` is the host's clock. */
  show(run: ShownRun, several: boolean, now: number): void {
    const { strings } = this.#options
    const { info } = run
    this.element.dataset.state = info.state
    this.#icon.className = `codicon codicon-${stateIcons[info.state]}${isBusy(info.state) ? ' codicon-modifier-spin' : ''}`
    const reading = info.loading ? fill(strings.reading, formatCount(info.rows)) : null
    const attempt = info.attempt > 1 ? fill(strings.attempt, info.attempt) : null
    setText(this.#state, [strings[info.state], info.detail, attempt, reading].filter((part) => part !== null).join(' · '))
    setText(this.#name, info.name)
    setAttribute(this.#name, 'title', info.id)
    setText(
      this.#subject,
      [info.model, info.method, info.dataset]
        .filter((part) => part !== null)
        .map(shortened)
        .join(' · '),
    )
    setText(this.#loss, lossText(info, strings))
    this.#showFacts(info, now)
    this.#progress.hidden = info.totalSteps === null
    if (info.totalSteps !== null) {
      this.#progress.max = Math.max(1, info.totalSteps)
      this.#progress.value = Math.min(info.step, info.totalSteps)
    }
    this.#showActions(info, several, now)
    this.#showNotices(run)
  }

  /** The host has finished what a button asked for. */
  acted(id: string, action: PanelAction, error: string | undefined): void {
    if (error !== undefined) {
      if (this.#pending?.id === id && this.#pending.action === action) this.#pending = undefined
      this.#complaint = { id, text: error }
    }
    this.#shownActions = this.#shownNotices = ''
  }

  #showFacts(info: RunInfo, now: number): void {
    const facts = factsOfRun(info, this.#options.strings, now)
    const keys = facts.map(({ key, label }) => `${key} ${label}`).join()
    if (keys !== this.#shownFacts) {
      this.#shownFacts = keys
      const places = facts.map(({ key, label }) => h('div', { class: `fact fact-${key}` }, h('dt', {}, label), h('dd')))
      this.#facts.replaceChildren(...places)
    }
    facts.forEach(({ value, title }, i) => {
      const place = this.#facts.children[i]!.lastElementChild!
      setText(place, value)
      setAttribute(place, 'title', title ?? null)
    })
  }

  #showActions(info: RunInfo, several: boolean, now: number): void {
    const { strings, act } = this.#options
    const waits = this.#pending
    const answered = waits?.id !== info.id || waits.state !== info.state || now - waits.since > patience
    if (answered) this.#pending = undefined
    const buttons = actionsOf(info, strings)
    const signature = JSON.stringify([info.id, buttons, this.#pending?.action, several, info.state === 'missing'])
    if (signature === this.#shownActions) return
    this.#shownActions = signature
    const focused = this.#actions.contains(document.activeElement)
    const press = ({ action }: ActionButton): void => {
      this.#pending = { id: info.id, action, state: info.state, since: now }
      this.#complaint = undefined
      this.#shownActions = ''
      this.#showActions(info, several, now)
      act(action, info.id)
    }
    this.#actions.replaceChildren(
      ...buttons.map((wanted) => {
        const { label, icon: name, primary = false, action } = wanted
        const element = button({ label, icon: name, primary, onClick: () => press(wanted) })
        element.dataset.action = action
        element.disabled = this.#pending !== undefined && action !== 'stopNow' && action !== 'generate' && action !== 'merge'
        return element
      }),
    )
    // A button that was pressed by keyboard and replaced must not throw the reader to the top of the page.
    if (focused) (this.#actions.querySelector<HTMLElement>('vscode-button:not([disabled])') ?? this.#name).focus()
    const files: readonly (readonly [PanelAction, string, string])[] =
      info.state === 'missing'
        ? []
        : [
            ['openRecipe', strings.openRecipe, 'file-code'],
            ['openLog', strings.openLog, 'output'],
            ['reveal', strings.reveal, 'folder-opened'],
            ...(several ? [['compareRecipes', strings.compareRecipes, 'diff'] as const] : []),
          ]
    this.#files.replaceChildren(
      ...files.map(([action, label, name]) => {
        const element = iconButton({ label, icon: name, onClick: () => act(action, info.id) })
        element.dataset.action = action
        return element
      }),
    )
  }

  #showNotices(run: ShownRun): void {
    const { info } = run
    const { strings } = this.#options
    const lastNonFinite = run.marks.filter(({ kind }) => kind === 'non_finite').at(-1)?.step
    const notices = noticesOf(info, lastNonFinite, strings)
    const complaint = this.#complaint?.id === info.id ? this.#complaint.text : undefined
    const signature = JSON.stringify([notices, complaint])
    if (signature === this.#shownNotices) return
    this.#shownNotices = signature
    const elements = notices.map(({ level, text, hint }) =>
      h(
        'div',
        { class: `notice ${level}`, role: level === 'error' ? 'alert' : 'note' },
        icon(level),
        h('div', {}, h('p', {}, text), hint === undefined ? null : h('p', { class: 'hint' }, hint)),
      ),
    )
    if (complaint !== undefined) {
      const dismiss = iconButton({
        label: strings.dismiss,
        icon: 'close',
        onClick: () => {
          this.#complaint = undefined
          this.#showNotices(run)
        },
      })
      elements.unshift(
        h(
          'div',
          { class: 'notice error', role: 'alert' },
          icon('error'),
          h('div', {}, ...complaint.split('\n').map((line) => h('p', {}, line))),
          dismiss,
        ),
      )
    }
    this.#notices.replaceChildren(...elements)
  }
}

/** A path by its last part: models and data are often named by long ones. */
const shortened = (text: string): string =>
  /^([/\\]|[A-Za-z]:)/.test(text)
    ? (text
        .split(/[/\\]/)
        .filter((part) => part !== '')
        .at(-1) ?? text)
    : text
