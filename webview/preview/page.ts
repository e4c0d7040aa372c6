import type { FromPreview, PreviewAnswer, PreviewLook, PreviewState, PreviewStrings, ToPreview } from '#shared/previewPage.ts'
import { previewStrings, rowsOfWindow, samplesOfPage } from '#shared/previewPage.ts'
import { fill } from '#shared/panelStrings.ts'
import type { PreviewSample, RecipeDiagnostic } from '#shared/protocol.ts'
import { formatCount } from '#shared/units.ts'
import { busyRing, checkbox, dropdown, iconButton, searchField, type DropdownControl, type SearchControl } from '../controls.ts'
import { h, icon, setText } from '../dom.ts'
import type { HostConnection } from '../vscodeApi.ts'
import { sampleView, tokenText } from './sampleView.ts'
import { summaryView } from './summary.ts'

type Host = HostConnection<FromPreview, ToPreview, PreviewState>

interface Parts {
  readonly title: HTMLElement
  readonly busy: HTMLElement
  readonly summary: HTMLElement
  readonly notices: HTMLElement
  readonly search: SearchControl
  readonly filter: DropdownControl<PreviewLook['filter']>
  readonly order: DropdownControl<PreviewLook['order']>
  readonly range: HTMLElement
  readonly window: HTMLElement
  readonly windowText: HTMLElement
  readonly buttons: Readonly<Record<'previous' | 'next' | 'earlier' | 'later', HTMLElement & { disabled: boolean }>>
  readonly samples: HTMLElement
  readonly tip: HTMLElement
  readonly status: HTMLElement
}

/** The preview: asks the host for what is looked at, and shows the answer. */
export class PreviewPage {
  readonly #root: HTMLElement
  readonly #host: Host
  #strings: PreviewStrings = previewStrings
  #look: PreviewLook
  #source: unknown = null
  #request = 0
  #parts: Parts | undefined
  #shown: readonly PreviewSample[] = []
  #matching = 0

  constructor(root: HTMLElement, host: Host, look: PreviewLook) {
    this.#root = root
    this.#host = host
    this.#look = look
  }

  start(): void {
    this.#host.onMessage((message) => this.#receive(message))
    this.#host.send({ type: 'ready' })
  }

  #receive(message: ToPreview): void {
    switch (message.type) {
      case 'start':
        this.#strings = { ...previewStrings, ...message.strings }
        this.#source = message.source
        this.#parts ??= this.#build()
        setText(this.#parts.title, message.title)
        this.#ask()
        return
      case 'changed':
        this.#ask()
        return
      case 'answer':
        if (message.request === this.#request) this.#show(message)
        return
      case 'failed':
        if (message.request !== this.#request) return
        this.#settled()
        this.#showNotices([{ severity: 'error', code: '', message: message.message }], [])
        return
    }
  }

  /** Asks for another look; what is not said stays, and a new choice begins with its first sample. */
  #change(change: Partial<PreviewLook>): void {
    this.#look = { ...this.#look, from: 0, ...change }
    this.#ask()
  }

  #ask(): void {
    this.#host.keep({ version: 1, source: this.#source, look: this.#look })
    if (this.#parts !== undefined) this.#parts.busy.hidden = false
    this.#root.setAttribute('aria-busy', 'true')
    this.#host.send({ type: 'look', request: ++this.#request, look: this.#look })
  }

  #settled(): void {
    this.#parts!.busy.hidden = true
    this.#root.setAttribute('aria-busy', 'false')
  }

  #turn(by: number): void {
    const from = this.#look.from + by * samplesOfPage
    if (from >= 0 && from < this.#matching) this.#change({ from })
  }

  #build(): Parts {
    const strings = this.#strings
    const turn = (label: string, name: string, onClick: () => void) => iconButton({ label, icon: name, onClick })
    const look = this.#look
    const parts: Parts = {
      title: h('h1'),
      busy: busyRing(strings.reading),
      summary: h('section', { class: 'whole' }),
      notices: h('div', { class: 'notices' }),
      search: searchField(strings.search, strings.searchHint, (search) => this.#change({ search })),
      filter: dropdown(
        strings.filter,
        [
          ['all', strings.all],
          ['problems', strings.problems],
          ['full', strings.full],
        ],
        look.filter,
        (filter) => this.#change({ filter }),
      ),
      order: dropdown(
        strings.order,
        [
          ['file', strings.file],
          ['longest', strings.longest],
          ['shortest', strings.shortest],
          ['leastTrained', strings.leastTrained],
        ],
        look.order,
        (order) => this.#change({ order }),
      ),
      range: h('span', { class: 'range' }),
      window: h('div', { class: 'window' }),
      windowText: h('span'),
      buttons: {
        previous: turn(strings.previous, 'chevron-left', () => this.#turn(-1)),
        next: turn(strings.next, 'chevron-right', () => this.#turn(1)),
        earlier: turn(strings.earlierRows, 'arrow-left', () =>
          this.#change({ firstRow: Math.max(0, this.#look.firstRow - rowsOfWindow) }),
        ),
        later: turn(strings.laterRows, 'arrow-right', () => this.#change({ firstRow: this.#look.firstRow + rowsOfWindow })),
      },
      samples: h('main', { class: 'samples' }),
      tip: h('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' }),
      status: h('div', { class: 'sr-only', role: 'status', 'aria-live': 'polite' }),
    }
    const borders = checkbox(strings.boundaries, false, (on) => parts.samples.classList.toggle('borders', on))
    const legend = h(
      'p',
      { class: 'legend' },
      ...(
        [
          ['trained', strings.legendTrained],
          ['masked', strings.legendMasked],
          ['special', strings.legendSpecial],
        ] as const
      ).map(([kind, text]) => h('span', { class: `token ${kind}` }, text)),
    )
    const { previous, next, earlier, later } = parts.buttons
    parts.window.append(earlier, parts.windowText, later)
    this.#root.replaceChildren(
      h(
        'header',
        { class: 'page-header' },
        h(
          'div',
          { class: 'title-row' },
          parts.title,
          parts.busy,
          iconButton({ label: strings.openRecipe, icon: 'file-code', onClick: () => this.#host.send({ type: 'openRecipe' }) }),
        ),
        parts.summary,
        parts.notices,
      ),
      h(
        'div',
        { class: 'toolbar', role: 'group' },
        parts.search.element,
        parts.filter.element,
        parts.order.element,
        borders.element,
        h('div', { class: 'pager' }, previous, parts.range, next),
        parts.window,
      ),
      legend,
      parts.samples,
      parts.tip,
      parts.status,
    )
    this.#listen(parts)
    return parts
  }

  #listen({ samples, tip }: Parts): void {
    let pointed: HTMLElement | null = null
    const point = (target: EventTarget | null): void => {
      pointed = target instanceof Element ? target.closest<HTMLElement>('[data-token]') : null
      const at = pointed === null ? -1 : [...samples.children].findIndex((view) => view.contains(pointed))
      const sample = this.#shown[at]
      const [first] = pointed?.getClientRects() ?? []
      tip.hidden = pointed === null || sample === undefined || first === undefined || first.bottom < 0 || first.top > innerHeight
      if (tip.hidden || first === undefined) return
      setText(tip, tokenText(sample!, Number(pointed!.dataset.token), this.#strings))
      tip.style.left = `${Math.max(4, Math.min(first.left, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`
      tip.style.top = `${first.bottom + 4 + tip.offsetHeight > innerHeight ? first.top - tip.offsetHeight - 4 : first.bottom + 4}px`
    }
    samples.addEventListener('pointerover', ({ target }) => point(target))
    samples.addEventListener('token', ({ target }) => point(target))
    samples.addEventListener('pointerleave', () => point(null))
    samples.addEventListener('focusout', () => point(null))
    document.addEventListener('scroll', () => point(pointed), { passive: true })
    document.addEventListener('keydown', (event) => {
      const typing = event.target instanceof Element && event.target.closest('input, vscode-dropdown') !== null
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return
      if (event.key === 'n') this.#turn(1)
      if (event.key === 'p') this.#turn(-1)
    })
  }

  #show({ look, preview, diagnostics, matching, more }: PreviewAnswer): void {
    const parts = this.#parts!
    const strings = this.#strings
    // The data have become fewer than they were.
    if (look.from > 0 && look.from >= matching && matching > 0) return this.#change({ from: 0 })
    this.#settled()
    this.#matching = matching
    this.#shown = preview?.shown ?? []
    this.#showNotices(diagnostics, preview?.warnings ?? [])
    parts.search.set(look.search)
    parts.filter.set(look.filter)
    parts.order.set(look.order)
    const range =
      this.#shown.length === 0
        ? preview === undefined
          ? ''
          : strings.none
        : fill(strings.range, formatCount(look.from + 1), formatCount(look.from + this.#shown.length), formatCount(matching))
    setText(parts.range, range)
    setText(parts.status, range)
    parts.buttons.previous.disabled = look.from === 0
    parts.buttons.next.disabled = look.from + samplesOfPage >= matching
    parts.window.hidden = look.firstRow === 0 && !more
    parts.buttons.earlier.disabled = look.firstRow === 0
    parts.buttons.later.disabled = !more
    setText(
      parts.windowText,
      fill(strings.window, formatCount(look.firstRow + 1), formatCount(look.firstRow + (preview?.rows.rows ?? rowsOfWindow))),
    )
    parts.summary.replaceChildren(...(preview === undefined ? [] : [summaryView(preview, strings)]))
    parts.tip.hidden = true
    parts.samples.replaceChildren(
      ...this.#shown.map((sample) =>
        sampleView(sample, {
          strings,
          longest: preview!.lengths.longest,
          openRow: (file, line) => this.#host.send({ type: 'open', file, line }),
          say: (text) => setText(parts.status, text),
        }),
      ),
    )
  }

  #showNotices(diagnostics: readonly RecipeDiagnostic[], warnings: readonly string[]): void {
    const notice = (level: 'error' | 'warning' | 'info', text: string): HTMLElement =>
      h(
        'div',
        { class: `notice ${level}`, role: level === 'error' ? 'alert' : 'note' },
        icon(level),
        h('div', {}, h('p', {}, text)),
      )
    this.#parts!.notices.replaceChildren(
      ...diagnostics.map(({ severity, line, message }) => notice(severity, line === undefined ? message : `${line}: ${message}`)),
      ...warnings.map((warning) => notice('warning', warning)),
    )
  }
}
