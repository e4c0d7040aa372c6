import type { PreviewStrings } from '#shared/previewPage.ts'
import { fill } from '#shared/panelStrings.ts'
import type { PreviewSample, PreviewToken } from '#shared/protocol.ts'
import { formatCount, formatPercent } from '#shared/units.ts'
import { h, icon } from '../dom.ts'

/** Tokens of a sample that are drawn before somebody asks for all of them. */
const drawnTokens = 1_500

export interface SampleOptions {
  readonly strings: PreviewStrings
  /** Of all samples of the window: the measure of the bars. */
  readonly longest: number
  readonly openRow: (file: string, line: number) => void
  readonly say: (text: string) => void
}

/** One sample, token by token. */
export function sampleView(sample: PreviewSample, options: SampleOptions): HTMLElement {
  const { strings, openRow } = options
  const { number, length, trained, file, line, tokens, problems } = sample
  const name = file.split(/[/\\]/).at(-1) ?? file
  const source = h('button', { class: 'link', type: 'button', title: file }, `${name}:${formatCount(line)}`)
  source.setAttribute('aria-label', fill(strings.openRow, formatCount(line), name))
  source.addEventListener('click', () => openRow(file, line))
  const text = h('div', { class: 'tokens', tabindex: 0, role: 'group' })
  text.setAttribute('aria-label', `${fill(strings.sample, formatCount(number))}. ${strings.keys}`)
  const view = h(
    'article',
    { class: 'sample' },
    h(
      'header',
      {},
      h('h2', {}, fill(strings.sample, formatCount(number))),
      h('p', { class: 'sample-length' }, fill(strings.sampleText, formatCount(length), formatCount(trained))),
      lengthBar(sample, options),
      source,
    ),
    ...problems.map((problem) =>
      h('div', { class: 'notice warning', role: 'note' }, icon('warning'), h('div', {}, h('p', {}, problem))),
    ),
    text,
  )
  const draw = (count: number): void => text.replaceChildren(...tokens.slice(0, count).map(tokenView))
  draw(drawnTokens)
  if (tokens.length > drawnTokens) {
    const all = h('button', { class: 'link', type: 'button' }, fill(strings.showAll, formatCount(tokens.length)))
    all.addEventListener('click', () => {
      draw(tokens.length)
      all.remove()
      text.focus()
    })
    view.append(all)
  }
  readByKeys(text, sample, options)
  return view
}

/** How long the sample is beside the others, and how much of it is trained. */
function lengthBar({ length, trained }: PreviewSample, { strings, longest }: SampleOptions): HTMLElement {
  const part = h('span', { class: 'bar-trained' })
  const bar = h('span', { class: 'bar-length' }, part)
  bar.style.width = `${(100 * length) / Math.max(1, longest)}%`
  part.style.width = `${(100 * trained) / Math.max(1, length)}%`
  const label = `${strings.length}: ${formatCount(length)} / ${formatCount(longest)}. ${fill(strings.share, formatPercent(trained / Math.max(1, length)))}`
  return h('span', { class: 'bar', role: 'img', 'aria-label': label, title: label }, bar)
}

/** A token; line breaks are made visible without becoming part of the text that is copied. */
function tokenView({ text, trained, special }: PreviewToken, index: number): HTMLElement {
  const kind = `${trained ? 'trained' : 'masked'}${special ? ' special' : ''}${text === '' ? ' part' : ''}`
  const parts = text.split('\n').flatMap((line, at) => (at === 0 ? [line] : [h('i', { class: 'line-end' }), `\n${line}`]))
  return h('span', { class: `token ${kind}`, 'data-token': index }, ...parts)
}

/** What a token is, in words. */
export function tokenText(sample: PreviewSample, index: number, strings: PreviewStrings): string {
  const { id, trained, special } = sample.tokens[index]!
  return [
    fill(strings.tokenText, id, formatCount(index + 1), formatCount(sample.tokens.length)),
    trained ? strings.tokenTrained : strings.tokenMasked,
    ...(special ? [strings.tokenSpecial] : []),
  ].join(' · ')
}

/** Arrow keys walk through the tokens and read them. */
function readByKeys(text: HTMLElement, sample: PreviewSample, { strings, say }: SampleOptions): void {
  let current = -1
  text.addEventListener('keydown', (event) => {
    const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0
    if (step === 0) return
    event.preventDefault()
    const drawn = text.children
    drawn[current]?.classList.remove('current')
    current = Math.min(drawn.length - 1, Math.max(0, current + step))
    const token = drawn[current]
    if (token === undefined) return
    token.classList.add('current')
    token.scrollIntoView({ block: 'nearest' })
    token.dispatchEvent(new CustomEvent('token', { bubbles: true }))
    say(`${sample.tokens[current]!.text} ${tokenText(sample, current, strings)}`)
  })
}
