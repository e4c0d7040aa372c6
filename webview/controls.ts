import type { Button, Checkbox, Dropdown } from '@vscode/webview-ui-toolkit'
import {
  provideVSCodeDesignSystem,
  vsCodeButton,
  vsCodeCheckbox,
  vsCodeDropdown,
  vsCodeOption,
  vsCodeProgressRing,
} from '@vscode/webview-ui-toolkit'
import { h, icon } from './dom.ts'

/** The only file that knows where the controls come from: pages use these functions. */

/** Makes the elements known to the page. Call it before any of them is made. */
export function registerControls(): void {
  provideVSCodeDesignSystem().register(vsCodeButton(), vsCodeCheckbox(), vsCodeDropdown(), vsCodeOption(), vsCodeProgressRing())
}

const create = <T extends HTMLElement>(tag: string): T => document.createElement(tag) as T

export interface ButtonOptions {
  readonly label: string
  readonly onClick: () => void
  readonly icon?: string
  readonly primary?: boolean
}

/** A button with a text. */
export function button({ label, onClick, icon: name, primary = false }: ButtonOptions): Button {
  const element = create<Button>('vscode-button')
  element.setAttribute('appearance', primary ? 'primary' : 'secondary')
  if (name !== undefined) {
    const start = icon(name)
    start.slot = 'start'
    element.append(start)
  }
  element.append(label)
  element.addEventListener('click', onClick)
  return element
}

/** A button that is only an icon; its label is its name for screen readers and its tooltip. */
export function iconButton({ label, onClick, icon: name }: ButtonOptions & { readonly icon: string }): Button {
  const element = create<Button>('vscode-button')
  element.setAttribute('appearance', 'icon')
  element.setAttribute('aria-label', label)
  element.title = label
  element.append(icon(name))
  element.addEventListener('click', onClick)
  return element
}

export interface CheckboxControl {
  readonly element: HTMLElement
  set(checked: boolean): void
}

export function checkbox(label: string, checked: boolean, onChange: (checked: boolean) => void): CheckboxControl {
  const element = create<Checkbox>('vscode-checkbox')
  element.append(label)
  element.checked = checked
  let known = checked
  element.addEventListener('change', () => {
    // It also tells of values that the page has set.
    if (element.checked === known) return
    known = element.checked
    onChange(known)
  })
  return {
    element,
    set: (value) => {
      known = value
      element.checked = value
    },
  }
}

export interface DropdownControl<T extends string> {
  readonly element: HTMLElement
  set(value: T): void
}

/** A labelled choice of one. */
export function dropdown<T extends string>(
  label: string,
  choices: readonly (readonly [T, string])[],
  value: T,
  onChange: (value: T) => void,
): DropdownControl<T> {
  const element = create<Dropdown>('vscode-dropdown')
  element.setAttribute('aria-label', label)
  for (const [key, text] of choices) {
    const option = create<HTMLElement>('vscode-option')
    option.setAttribute('value', key)
    if (key === value) option.setAttribute('selected', '')
    option.append(text)
    element.append(option)
  }
  let known = value
  element.addEventListener('change', () => {
    const chosen = choices.find(([key]) => key === element.value)?.[0]
    if (chosen === undefined || chosen === known) return
    known = chosen
    onChange(chosen)
  })
  return {
    element: h('div', { class: 'field' }, h('span', { class: 'field-label', 'aria-hidden': 'true' }, label), element),
    set: (next) => {
      known = next
      element.value = next
    },
  }
}

export interface SliderControl {
  readonly element: HTMLElement
  set(position: number, text: string): void
}

/** A labelled slider from 0 to 1000 with its value as text. The toolkit has none: this is the browser's own. */
export function slider(label: string, onInput: (position: number) => void): SliderControl {
  const input = h('input', { type: 'range', min: 0, max: 1000, step: 1, 'aria-label': label })
  const value = h('output', { class: 'slider-value' })
  input.addEventListener('input', () => onInput(input.valueAsNumber))
  return {
    element: h('div', { class: 'field' }, h('span', { class: 'field-label', 'aria-hidden': 'true' }, label), input, value),
    set: (position, text) => {
      if (input.valueAsNumber !== position) input.valueAsNumber = position
      input.setAttribute('aria-valuetext', text)
      value.textContent = text
    },
  }
}

export interface SearchControl {
  readonly element: HTMLElement
  set(text: string): void
}

/** A labelled line for a text to look for; tells of it after a moment of rest. */
export function searchField(label: string, hint: string, onChange: (text: string) => void): SearchControl {
  const input = h('input', { type: 'search', 'aria-label': label, placeholder: hint, spellcheck: 'false', class: 'search' })
  let timer: ReturnType<typeof setTimeout> | undefined
  let known = ''
  const tell = (): void => {
    clearTimeout(timer)
    if (input.value === known) return
    known = input.value
    onChange(known)
  }
  input.addEventListener('input', () => {
    clearTimeout(timer)
    timer = setTimeout(tell, 250)
  })
  // Enter, and the browser's own cross.
  input.addEventListener('change', tell)
  return {
    element: h('div', { class: 'field' }, h('span', { class: 'field-label', 'aria-hidden': 'true' }, label), input),
    set: (text) => {
      known = text
      if (document.activeElement !== input) input.value = text
    },
  }
}

/** A sign that something is under way. */
export function busyRing(label: string): HTMLElement {
  const element = create<HTMLElement>('vscode-progress-ring')
  element.setAttribute('aria-label', label)
  return element
}
