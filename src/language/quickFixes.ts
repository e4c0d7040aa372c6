import type { CodeAction, Diagnostic, Range, TextEdit } from 'vscode-languageserver'
import type { ProblemData, RecipeProblem } from './diagnostics.ts'
import { removeEntry, renameKey, setValue } from './edit/recipeEdits.ts'
import { yamlValue } from './fieldText.ts'
import { removal, suggested, type Fix } from './fixes/fix.ts'
import { moveAll, moveFixes, strayKeys } from './fixes/moveKeys.ts'
import { rewrites } from './fixes/rewrites.ts'
import { conflictFixes, evalFix, memoryFixes, missingFixes, unavailableFixes, valueFixes } from './fixes/settings.ts'
import { formatRecipeText } from './format.ts'
import { foreignName } from './migrate/foreign.ts'
import { migrateForeign } from './migrate/migrate.ts'
import { Outline, type Entry } from './outline.ts'
import { SourceText } from './text.ts'
import { t } from './texts.ts'

/** Kinds of code actions, as the protocol names them. */
export const actionKinds = ['quickfix', 'refactor.rewrite', 'source.fixAll'] as const

/** Whether a diagnostic is one of ours, with the data that fixes need. */
function isOurs(diagnostic: Diagnostic): diagnostic is RecipeProblem {
  const data = diagnostic.data as Partial<ProblemData> | undefined
  return typeof diagnostic.code === 'string' && Array.isArray(data?.path)
}

/** Quick fixes for problems, and rewrites of what stands at the range. */
export function codeActions(source: SourceText, uri: string, range: Range, diagnostics: readonly Diagnostic[]): CodeAction[] {
  const outline = new Outline(source)
  const actions: CodeAction[] = []
  for (const diagnostic of diagnostics.filter(isOurs)) {
    for (const { title, edits, preferred } of fixesFor(outline, diagnostic)) {
      actions.push({
        title,
        kind: 'quickfix',
        diagnostics: [diagnostic],
        edit: { changes: { [uri]: [...edits] } },
        ...(preferred === true ? { isPreferred: true } : {}),
      })
    }
  }
  const stray = strayKeys(outline)
  if (stray.length > 1) {
    actions.push({
      title: t('Move all keys to their sections'),
      kind: 'quickfix',
      edit: { changes: { [uri]: moveAll(outline, stray) } },
      diagnostics: diagnostics.filter(({ code }) => code === 'wrong_section'),
    })
  }
  for (const { title, edits } of rewrites(outline, source.offset(range.start))) {
    actions.push({ title, kind: 'refactor.rewrite', edit: { changes: { [uri]: [...edits] } } })
  }
  return actions
}

function fixesFor(outline: Outline, problem: RecipeProblem): Fix[] {
  const { path, suggestion } = problem.data
  const entry =
    outline.atPath(path) ??
    (problem.code === 'duplicate_key' ? outline.at(outline.source.offset(problem.range.start)) : undefined)
  switch (problem.code) {
    case 'unknown_key':
      return entry === undefined ? [] : unknownKeyFixes(outline, entry, suggestion)
    case 'wrong_section':
      return entry === undefined ? [] : moveFixes(outline, entry)
    case 'duplicate_key': {
      const written =
        outline.entries.findLast(({ keySpan }) => keySpan.start === outline.source.offset(problem.range.start)) ?? entry
      return written === undefined
        ? []
        : [{ title: t('Remove this {0}', written.key), edits: [removeEntry(outline, written)], preferred: true }]
    }
    case 'secret':
      return entry === undefined
        ? []
        : [{ title: t('Remove {0} from the file', entry.key), edits: [removeEntry(outline, entry)], preferred: true }]
    case 'missing':
      return missingFixes(outline, path)
    case 'empty':
      return entry?.field === undefined
        ? []
        : [
            {
              title: t('Write the default {0}', yamlValue(entry.field.meta.default)),
              edits: [setValue(outline, entry, yamlValue(entry.field.meta.default))],
              preferred: true,
            },
            { title: t('Remove {0}', entry.key), edits: [removeEntry(outline, entry)] },
          ]
    case 'conflict':
      return conflictFixes(outline, problem, entry)
    case 'ineffective':
      return [...evalFix(outline, path), ...(entry === undefined ? [] : [removal(outline, entry)])]
    case 'unavailable':
      return entry === undefined ? [] : unavailableFixes(outline, entry)
    case 'type':
    case 'value':
    case 'range':
      return entry === undefined ? [] : valueFixes(outline, problem, entry)
    case 'syntax':
      return untab(outline)
    case 'foreign':
      return foreignFix(outline, problem)
    case 'memory':
      return memoryFixes(outline)
    case 'target_missing':
      return entry === undefined
        ? []
        : [
            ...(suggestion === undefined ? [] : [suggested(outline, entry, suggestion, path.at(-1))]),
            { title: t('Change to all-linear'), edits: [setValue(outline, entry, 'all-linear')] },
          ]
    default:
      return entry === undefined || suggestion === undefined ? [] : [suggested(outline, entry, suggestion, path.at(-1))]
  }
}

function unknownKeyFixes(outline: Outline, entry: Entry, suggestion: string | undefined): Fix[] {
  const fixes: Fix[] = []
  if (suggestion !== undefined)
    fixes.push({ title: t('Change to {0}', suggestion), edits: [renameKey(outline, entry, suggestion)], preferred: true })
  return [...fixes, removal(outline, entry)]
}

function untab(outline: Outline): Fix[] {
  const { source } = outline
  const edits: TextEdit[] = []
  for (let line = 0; line < source.lineCount; line++) {
    const indent = /^[ \t]*\t[ \t]*/.exec(source.line(line))
    const start = source.lineStart(line)
    if (indent !== null) edits.push(source.edit({ start, end: start + indent[0].length }, indent[0].replaceAll('\t', '  ')))
  }
  return edits.length === 0 ? [] : [{ title: t('Indent with spaces'), edits, preferred: true }]
}

function foreignFix({ source }: Outline, problem: RecipeProblem): Fix[] {
  const { foreign } = problem.data
  const migration = foreign === undefined ? undefined : migrateForeign(source.text, foreign)
  if (foreign === undefined || migration === undefined) return []
  return [
    {
      title: t('Turn this file of {0} into a recipe', foreignName[foreign]),
      edits: [source.edit({ start: 0, end: source.text.length }, migration.text)],
      preferred: true,
    },
  ]
}

/** Everything that can be put right without asking: names, sections, tabs, layout. */
export function fixAll(
  text: string,
  diagnose: (source: SourceText) => readonly RecipeProblem[],
  apply: (source: SourceText, edits: readonly TextEdit[]) => string,
): string {
  let current = text
  const safe = new Set(['unknown_key', 'wrong_section', 'syntax'])
  for (let round = 0; round < 60; round++) {
    const source = new SourceText(current)
    const outline = new Outline(source)
    const fix = diagnose(source)
      .filter(({ code }) => safe.has(code))
      .flatMap((problem) => fixesFor(outline, problem))
      .find(({ preferred }) => preferred === true)
    const next = fix === undefined ? current : apply(source, fix.edits)
    if (next === current) break
    current = next
  }
  return formatRecipeText(current)
}
