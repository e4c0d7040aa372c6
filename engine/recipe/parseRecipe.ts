import * as fs from 'node:fs'
import * as path from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { say, validateRecipe, type Recipe, type RecipeIssue, type RecipeOverride, type Said } from '#shared/recipe.ts'
import { maxRecipeBytes, parseDocument, type TextRange } from './recipeDocument.ts'

/** A problem with its place in the file; on the command line when it has a flag. */
export interface LocatedIssue extends RecipeIssue {
  readonly range: TextRange
}

export interface Diagnosis {
  /** Null when there is an error among the issues. */
  readonly recipe: Recipe | null
  readonly issues: readonly LocatedIssue[]
}

export interface ParsedRecipe {
  readonly recipe: Recipe
  readonly warnings: readonly LocatedIssue[]
}

export interface ParseOptions {
  /** Values from flags, laid over the file. */
  readonly overrides?: readonly RecipeOverride[]
}

const start: TextRange = { start: { line: 1, column: 1 }, end: { line: 1, column: 1 } }
const syntax = (said: Said, range = start): LocatedIssue => ({
  severity: 'error',
  code: 'syntax',
  path: [],
  at: 'value',
  ...said,
  range,
})

/** Decodes UTF-8 with or without a byte order mark; what is wrong comes back as a problem with its line. */
function decode(source: string | Uint8Array): string | LocatedIssue {
  const size = typeof source === 'string' ? Buffer.byteLength(source) : source.byteLength
  if (size > maxRecipeBytes) return syntax(say`the file has ${size} bytes; a recipe has at most ${maxRecipeBytes}`)
  if (typeof source === 'string') return checkText(source)
  if ((source[0] === 0xff && source[1] === 0xfe) || (source[0] === 0xfe && source[1] === 0xff)) {
    return syntax(say`the file is in UTF-16; save it as UTF-8`)
  }
  try {
    return checkText(new TextDecoder('utf-8', { fatal: true }).decode(source))
  } catch {
    const lossy = new TextDecoder('utf-8').decode(source).split('\n')
    const index = Math.max(
      0,
      lossy.findIndex((line) => line.includes('\ufffd')),
    )
    const at = { line: index + 1, column: Math.max(0, lossy[index]!.indexOf('\ufffd')) + 1 }
    return syntax(say`this is not UTF-8 text; save the file as UTF-8`, { start: at, end: at })
  }
}

function checkText(source: string): string | LocatedIssue {
  const text = source.startsWith('\ufeff') ? source.slice(1) : source
  const zero = text.indexOf('\0')
  if (zero < 0) return text
  const before = text.slice(0, zero).split('\n')
  const at = { line: before.length, column: before[before.length - 1]!.length + 1 }
  return syntax(say`this is not a text file: it has a zero byte`, { start: at, end: at })
}

/** Finds every problem of a recipe. Never throws for what a file contains. */
export function diagnoseRecipe(source: string | Uint8Array, file: string, { overrides = [] }: ParseOptions = {}): Diagnosis {
  const text = decode(source)
  if (typeof text !== 'string') return { recipe: null, issues: [text] }
  const document = parseDocument(text, { json: /\.json$/i.test(file) })
  const problems = document.problems.map(({ code, said, range }): LocatedIssue => ({
    severity: 'error',
    code,
    path: [],
    at: 'value',
    ...said,
    range,
  }))
  // After broken syntax the rest would only be noise; a key written twice still leaves a readable recipe.
  if (problems.some((problem) => problem.code === 'syntax')) return { recipe: null, issues: problems }
  const { recipe, issues } = validateRecipe(document.value, { overrides, written: document.written })
  const located = issues.map((issue): LocatedIssue => ({ ...issue, range: document.rangeAt(issue.path, issue.at) }))
  const all = [...problems, ...located].sort(
    (a, b) => a.range.start.line - b.range.start.line || a.range.start.column - b.range.start.column,
  )
  return { recipe: problems.length > 0 ? null : recipe, issues: all }
}

/** One line for an issue: `finetune.yaml:7:3: …`, or the flag that it came from. */
export function describeIssue(issue: LocatedIssue, file: string): string {
  const { flag, message } = issue
  if (flag !== undefined) return `${flag}: ${message.startsWith(`${flag} `) ? message.slice(flag.length + 1) : message}`
  return `${file}:${issue.range.start.line}:${issue.range.start.column}: ${issue.message}`
}

/** Throws one RECIPE error that lists every error of a diagnosis. */
function refuse(issues: readonly LocatedIssue[], file: string): never {
  const lines = issues.filter((issue) => issue.severity === 'error').map((issue) => describeIssue(issue, file))
  const shown = lines.slice(0, 50)
  if (lines.length > shown.length) shown.push(`… and ${lines.length - shown.length} more`)
  throw new UnslothError('RECIPE', shown.join('\n'), { hint: 'All keys are described in docs/recipe.md.' })
}

/** Text of a recipe (YAML, or JSON when the file is named so) to a recipe, or a RECIPE error that lists all problems. */
export function parseRecipe(source: string | Uint8Array, file: string, options: ParseOptions = {}): ParsedRecipe {
  const { recipe, issues } = diagnoseRecipe(source, file, options)
  return recipe === null ? refuse(issues, file) : { recipe, warnings: issues }
}

/** A recipe made of flags alone. */
export function recipeFromFlags(overrides: readonly RecipeOverride[]): ParsedRecipe {
  const { recipe, issues } = validateRecipe({}, { overrides })
  const located = issues.map((issue): LocatedIssue => ({ ...issue, range: start }))
  return recipe === null ? refuse(located, 'command line') : { recipe, warnings: located }
}

/** Reads a recipe file. Errors name it as given. */
export function readRecipe(file: string, options: ParseOptions = {}): ParsedRecipe {
  let source: Uint8Array
  try {
    const { size } = fs.statSync(file)
    // The size is looked at first, so that a model file named by mistake is not read into memory.
    source = size > maxRecipeBytes ? new Uint8Array(maxRecipeBytes + 1) : fs.readFileSync(file)
    if (size > maxRecipeBytes)
      return refuse([syntax(say`the file has ${size} bytes; a recipe has at most ${maxRecipeBytes}`)], file)
  } catch (error) {
    if (UnslothError.is(error)) throw error
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') {
      throw new UnslothError('FILE_NOT_FOUND', `there is no recipe ${file}`, {
        hint: `The current folder is ${path.resolve('.')}.`,
        cause: error,
      })
    }
    const what = code === 'EISDIR' ? 'it is a folder' : (error as Error).message
    throw new UnslothError('FILE_FORMAT', `the recipe ${file} cannot be read: ${what}`, { cause: error })
  }
  return parseRecipe(source, file, options)
}
