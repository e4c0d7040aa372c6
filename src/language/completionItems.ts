import type { MarkupContent } from 'vscode-languageserver'

/** Kinds of completion items, as the protocol numbers them. */
export const itemKind = {
  module: 9,
  property: 10,
  value: 12,
  snippet: 15,
  constant: 21,
  folder: 19,
  file: 17,
  enumMember: 20,
} as const
/** The inserted text is a snippet. */
export const snippetFormat = 2
/** Opens the list of values after a key was inserted. */
export const suggestAgain = { title: 'Suggest', command: 'editor.action.triggerSuggest' }

/** Sort text of the item with an index. */
export const order = (index: number): string => String(index).padStart(4, '0')
/** Text as Markdown. */
export const markdown = (value: string): MarkupContent => ({ kind: 'markdown', value })
