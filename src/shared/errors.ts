/**
 * Every failure that a user can meet, as one error type with a stable code.
 * The message says what is wrong and where (file, line, key, tensor); the hint says what to do about it.
 */
export const errorCodes = [
  'USAGE', // bad command line
  'RECIPE', // recipe file does not validate
  'FILE_NOT_FOUND',
  'FILE_FORMAT', // truncated, malformed or inconsistent file
  'FILE_WRITE', // disk full, permission
  'MODEL_UNSUPPORTED', // architecture, dtype or configuration that the engine cannot run
  'MODEL_INVALID', // missing tensors, wrong shapes, non-finite weights
  'TOKENIZER',
  'DATA', // data set unreadable, empty, wrong columns, all labels masked
  'MEMORY', // the plan does not fit
  'GPU', // no usable GPU, or it failed
  'NON_FINITE', // loss or gradient became NaN or infinite
  'RUN_BUSY', // another process owns the run directory
  'RUN_INVALID', // not a run directory, or its files are damaged
  'HUB', // the Hub: not reachable, no access, nothing usable there, damaged download
  'STOPPED', // the user asked to stop
  'VERIFY', // a check failed
  'NATIVE', // the compute addon is missing or failed
  'INTERNAL',
] as const
export type ErrorCode = (typeof errorCodes)[number]

export interface ErrorDetails {
  readonly hint?: string
  readonly cause?: unknown
}

export class UnslothError extends Error {
  override readonly name = 'UnslothError'
  readonly code: ErrorCode
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause })
    this.code = code
    this.hint = details.hint
  }

  static is(error: unknown, code?: ErrorCode): error is UnslothError {
    return error instanceof UnslothError && (code === undefined || error.code === code)
  }
}

/** What to show for any thrown value: one line, and the hint on a second one when there is one. */
export function describeError(error: unknown): string {
  if (error instanceof UnslothError) return error.hint === undefined ? error.message : `${error.message}\n  ${error.hint}`
  return error instanceof Error ? error.message : String(error)
}
