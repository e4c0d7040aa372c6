import type { DataPreview, PreviewFilter, PreviewOrder, RecipeDiagnostic } from './protocol.ts'
import { previewFilters, previewOrders } from './protocol.ts'

/**
 * What the extension host and the preview of data say to each other. The page asks for what it wants to see, the host asks the
 * engine and answers; an answer to an earlier question than the last one is not sent.
 */

/** What the page shows, kept by the page. */
export interface PreviewLook {
  /** The first of the samples that search and filter leave, from 0. */
  readonly from: number
  readonly search: string
  readonly filter: PreviewFilter
  readonly order: PreviewOrder
  /** The first row of the window of rows that is looked at, from 0. */
  readonly firstRow: number
}

export const firstLook: PreviewLook = { from: 0, search: '', filter: 'all', order: 'file', firstRow: 0 }

/** Samples of one page, and rows of one window: a file of any size opens with a bounded look at its beginning. */
export const samplesOfPage = 10
export const rowsOfWindow = 2_000

/** What the page keeps for the time after a window reload. */
export interface PreviewState {
  readonly version: 1
  /** What is looked at; the host makes and reads it. */
  readonly source: unknown
  readonly look: PreviewLook
}

export interface PreviewAnswer {
  readonly type: 'answer'
  /** The question's number. */
  readonly request: number
  readonly look: PreviewLook
  readonly diagnostics: readonly RecipeDiagnostic[]
  /** Absent when recipe or data have errors. */
  readonly preview?: DataPreview
  readonly matching: number
  /** Whether there are rows behind the window. */
  readonly more: boolean
}

export type ToPreview =
  | {
      readonly type: 'start'
      readonly strings: Readonly<Record<string, string>>
      readonly title: string
      readonly source: unknown
    }
  /** The recipe or the data have changed: the page asks again. */
  | { readonly type: 'changed' }
  | PreviewAnswer
  | { readonly type: 'failed'; readonly request: number; readonly message: string }

export type FromPreview =
  | { readonly type: 'ready' }
  | { readonly type: 'look'; readonly request: number; readonly look: PreviewLook }
  | { readonly type: 'open'; readonly file: string; readonly line: number }
  | { readonly type: 'openRecipe' }
  /** An error of the page, for the log. */
  | { readonly type: 'trouble'; readonly message: string }

const count = (value: unknown): number => (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : 0)

/** A look as a message or a kept state carries it, made safe. */
export function readLook(value: unknown): PreviewLook {
  const fields = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  return {
    from: count(fields.from),
    firstRow: count(fields.firstRow),
    search: typeof fields.search === 'string' ? fields.search.slice(0, 1_000) : '',
    filter: previewFilters.find((known) => known === fields.filter) ?? 'all',
    order: previewOrders.find((known) => known === fields.order) ?? 'file',
  }
}

export function readPreviewState(value: unknown): PreviewState {
  const fields = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
  return { version: 1, source: fields.source ?? null, look: readLook(fields.look) }
}

/** Every text of the preview in English; see panelStrings.ts. */
export const previewStrings = {
  reading: 'Reading the data',
  search: 'Search',
  searchHint: 'Text of a sample',
  filter: 'Show',
  all: 'All samples',
  problems: 'With problems',
  full: 'At the length limit',
  order: 'Order',
  file: 'As in the file',
  longest: 'Longest first',
  shortest: 'Shortest first',
  leastTrained: 'Least trained first',
  previous: 'Previous samples',
  next: 'Next samples',
  boundaries: 'Token borders',
  range: 'Samples {0}–{1} of {2}',
  none: 'No sample matches.',
  format: 'Format',
  rows: 'Rows',
  samples: 'Samples',
  tokens: 'Tokens',
  trained: 'Trained',
  lengths: 'Length',
  lengthsText: '{0} to {1}, half at most {2}, 99 % at most {3}',
  packing: 'Packed',
  packingText: '{0} × {1} tokens, {2} filled',
  window: 'Rows {0}–{1}',
  earlierRows: 'Earlier rows',
  laterRows: 'Later rows',
  legendTrained: 'trained',
  legendMasked: 'only read',
  legendSpecial: 'special token',
  sample: 'Sample {0}',
  sampleText: '{0} tokens, {1} trained',
  openRow: 'Open line {0} of {1}',
  openRecipe: 'Open the recipe',
  showAll: 'Show all {0} tokens',
  tokenText: 'token {0}, number {1} of {2}',
  tokenTrained: 'trained',
  tokenMasked: 'only read',
  tokenSpecial: 'special',
  histogram: 'Lengths of samples',
  histogramBar: '{0} to {1} tokens: {2} samples',
  keys: 'Left and right arrows read tokens, N and P turn pages.',
  length: 'Length of this sample',
  share: 'Trained of {0}',
} as const

export type PreviewStringKey = keyof typeof previewStrings
export type PreviewStrings = Readonly<Record<PreviewStringKey, string>>
