export type PathPart = string | number

/** One problem of a recipe, at a place of the document or on the command line. */
export interface RecipeIssue {
  readonly severity: 'error' | 'warning'
  readonly code:
    | 'syntax' | 'duplicate_key' | 'unknown_key' | 'wrong_section' | 'type' | 'range' | 'value' | 'missing'
    | 'conflict' | 'unavailable' | 'secret' | 'empty' | 'ineffective'
  /** Where, in the keys of the document as they are written there. */
  readonly path: readonly PathPart[]
  /** Whether the key or its value is at fault. */
  readonly at: 'key' | 'value'
  /** Without place; the key is named by its full path. */
  readonly message: string
  /** What to write instead of the key or value, when that is known: for a quick fix. */
  readonly suggestion?: string
  /** Command-line flag that the value came from; the document is not at fault then. */
  readonly flag?: string
}
