import { UnslothError } from '#shared/errors.ts'
import type { RecipeDiagnostic } from '#shared/protocol.ts'
import type { LocatedIssue } from '../recipe/parseRecipe.ts'

/** A problem of a recipe as the protocol has it. */
export function diagnostic(issue: LocatedIssue): RecipeDiagnostic {
  const { severity, code, message, path, suggestion, range } = issue
  return {
    severity,
    code,
    message,
    key: path.join('.'),
    ...(suggestion === undefined ? {} : { suggestion }),
    line: range.start.line,
    column: range.start.column,
    endLine: range.end.line,
    endColumn: range.end.column,
  }
}

/** A failure that the user can mend as a problem without a place; any other goes on. */
export function problemOf(error: unknown): RecipeDiagnostic {
  if (!UnslothError.is(error)) throw error
  const hint = error.hint === undefined ? '' : ` ${error.hint}`
  return { severity: 'error', code: error.code, message: `${error.message}${hint}` }
}
