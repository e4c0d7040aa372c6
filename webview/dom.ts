type Child = Node | string | null | undefined

interface Attributes {
  readonly class?: string
  readonly [name: string]: string | number | boolean | undefined
}

/** An element with attributes and children. True stands for an attribute without a value, false and undefined for none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, '')
    else if (value !== false && value !== undefined) element.setAttribute(name, String(value))
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child)
  return element
}

/** A codicon that only decorates: whatever it says is said by text or a label as well. */
export const icon = (name: string, more = ''): HTMLElement =>
  h('span', { class: `codicon codicon-${name}${more === '' ? '' : ` ${more}`}`, 'aria-hidden': 'true' })

/** Sets a text only when it differs, which spares the layout and screen readers. */
export function setText(node: Node, text: string): void {
  if (node.textContent !== text) node.textContent = text
}

/** Sets or removes an attribute when it differs. */
export function setAttribute(element: Element, name: string, value: string | null): void {
  if (element.getAttribute(name) === value) return
  if (value === null) element.removeAttribute(name)
  else element.setAttribute(name, value)
}
