import type { Diagnostic } from 'vscode-languageserver'
import type { Recipe, RecipeIssue } from '#shared/recipe.ts'
import { diagnoseRecipe, type LocatedIssue } from '../../engine/recipe/parseRecipe.ts'
import type { Place } from '../../engine/recipe/recipeDocument.ts'
import { foreignKind, foreignName, type ForeignKind } from './migrate/foreign.ts'
import { afterMark, type SourceText } from './text.ts'
import { inWords, t } from './texts.ts'

/** Severities, as the protocol numbers them. */
export const severity = { error: 1, warning: 2, information: 3, hint: 4 } as const

/** Problems that only the world around the recipe has. */
export type WorldCode =
  | 'file_missing'
  | 'model_missing'
  | 'model_invalid'
  | 'dataset_format'
  | 'column_missing'
  | 'target_missing'
  | 'layer_range'
  | 'sequence_length'
  | 'data_truncated'
  | 'memory'
  | 'device_missing'

export type ProblemCode = RecipeIssue['code'] | WorldCode | 'foreign'

/** What a quick fix needs to know of a problem; it stands in `data` of the diagnostic. */
export interface ProblemData {
  readonly path: readonly (string | number)[]
  /** The English text of the problem with {0}, {1}, … for its values: what a fix knows it by. */
  readonly template?: string
  readonly suggestion?: string
  readonly foreign?: ForeignKind
}

export interface RecipeProblem extends Diagnostic {
  code: ProblemCode
  data: ProblemData
  message: string
}

export interface SchemaDiagnosis {
  readonly problems: RecipeProblem[]
  /** The recipe with all defaults; null when it has errors. */
  readonly recipe: Recipe | null
  readonly foreign: ForeignKind | undefined
}

const source = 'unsloth'

/** Makes a diagnostic at a place of the text. */
export function problem(
  text: SourceText,
  span: { readonly start: number; readonly end: number },
  level: 1 | 2 | 3 | 4,
  code: ProblemCode,
  message: string,
  data: ProblemData,
): RecipeProblem {
  return { range: text.range(span), severity: level, code, source, message, data }
}

/** Offsets of the places that the parser names: it counts lines by line feeds alone and does not see a byte order mark. */
function placeReader({ text }: SourceText): (place: Place) => number {
  const starts = [afterMark(text)]
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) starts.push(at + 1)
  return ({ line, column }) => {
    const start = starts[Math.min(line, starts.length) - 1] ?? text.length
    return Math.min(text.length, start + column - 1)
  }
}

function located(text: SourceText, issue: LocatedIssue, at: (place: Place) => number): RecipeProblem {
  const start = at(issue.range.start)
  let end = Math.max(start, at(issue.range.end))
  // An empty range would show nothing: it takes the rest of the word.
  if (end === start) end = start + (/^[^\s:,\]}]+/.exec(text.text.slice(start, start + 200))?.[0].length ?? 0)
  return problem(
    text,
    { start, end },
    issue.severity === 'error' ? severity.error : severity.warning,
    issue.code,
    inWords(issue),
    {
      path: issue.path,
      ...(issue.template === undefined ? {} : { template: issue.template }),
      ...(issue.suggestion === undefined ? {} : { suggestion: issue.suggestion }),
    },
  )
}

/** Problems that the text has by itself: syntax, keys, types, ranges, rules between keys, what is not available yet. */
export function diagnoseSchema(text: SourceText, file: string): SchemaDiagnosis {
  const foreign = foreignKind(text.text)
  if (foreign !== undefined) {
    const line = firstContentLine(text)
    const message = t('this is a file of {0}; the quick fix turns it into a recipe', foreignName[foreign])
    const span = { start: text.lineStart(line), end: text.lineEnd(line) }
    return { problems: [problem(text, span, severity.error, 'foreign', message, { path: [], foreign })], recipe: null, foreign }
  }
  const { recipe, issues } = diagnoseRecipe(text.text, file)
  const at = placeReader(text)
  return { problems: issues.map((issue) => located(text, issue, at)), recipe, foreign: undefined }
}

function firstContentLine(text: SourceText): number {
  for (let line = 0; line < text.lineCount; line++) if (/^\ufeff?\s*[^\s#]/.test(text.line(line))) return line
  return 0
}
