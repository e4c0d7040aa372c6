import type { CodeAction, Diagnostic, Range, TextEdit } from 'vscode-languageserver'
import { fieldAt, findField, isSection, recipeFields, sectionNames, type RecipeField, type SectionName } from '#shared/recipe.ts'
import type { ProblemData, RecipeProblem } from './diagnostics.ts'
import { entrySpan, insertKeys, linesOf, removeEntry, renameKey, setValue, type Insertion } from './edit/recipeEdits.ts'
import { formatNumber, quoteIfNeeded, yamlValue } from './fieldText.ts'
import { formatRecipeText } from './format.ts'
import { foreignName } from './migrate/foreign.ts'
import { migrateForeign } from './migrate/migrate.ts'
import { Outline, type Entry } from './outline.ts'
import { SourceText } from './text.ts'

/** Kinds of code actions, as the protocol names them. */
export const actionKinds = ['quickfix', 'refactor.rewrite', 'source.fixAll'] as const

interface Fix {
  readonly title: string
  readonly edits: readonly TextEdit[]
  readonly preferred?: boolean
}

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
        title, kind: 'quickfix', diagnostics: [diagnostic], edit: { changes: { [uri]: [...edits] } }, ...(preferred === true ? { isPreferred: true } : {}),
      })
    }
  }
  const stray = strayKeys(outline)
  if (stray.length > 1) {
    actions.push({ title: 'Move all keys to their sections', kind: 'quickfix', edit: { changes: { [uri]: moveAll(outline, stray) } },
      diagnostics: diagnostics.filter(({ code }) => code === 'wrong_section') })
  }
  for (const { title, edits } of rewrites(outline, source.offset(range.start))) {
    actions.push({ title, kind: 'refactor.rewrite', edit: { changes: { [uri]: [...edits] } } })
  }
  return actions
}

function fixesFor(outline: Outline, problem: RecipeProblem): Fix[] {
  const { path, suggestion } = problem.data
  const entry = outline.atPath(path) ?? (problem.code === 'duplicate_key' ? outline.at(outline.source.offset(problem.range.start)) : undefined)
  switch (problem.code) {
    case 'unknown_key': return entry === undefined ? [] : unknownKeyFixes(outline, entry, suggestion)
    case 'wrong_section': return entry === undefined ? [] : moveFixes(outline, entry)
    case 'duplicate_key': {
      const written = outline.entries.findLast(({ keySpan }) => keySpan.start === outline.source.offset(problem.range.start)) ?? entry
      return written === undefined ? [] : [{ title: `Remove this ${written.key}`, edits: [removeEntry(outline, written)], preferred: true }]
    }
    case 'secret': return entry === undefined ? [] : [{ title: `Remove ${entry.key} from the file`, edits: [removeEntry(outline, entry)], preferred: true }]
    case 'missing': return missingFixes(outline, path)
    case 'empty': return entry?.field === undefined ? [] : [
      { title: `Write the default ${yamlValue(entry.field.meta.default)}`, edits: [setValue(outline, entry, yamlValue(entry.field.meta.default))], preferred: true },
      { title: `Remove ${entry.key}`, edits: [removeEntry(outline, entry)] },
    ]
    case 'conflict': return conflictFixes(outline, problem, entry)
    case 'ineffective': return [...evalFix(outline, path), ...(entry === undefined ? [] : [removal(outline, entry)])]
    case 'unavailable': return entry === undefined ? [] : unavailableFixes(outline, entry)
    case 'type': case 'value': case 'range': return entry === undefined ? [] : valueFixes(outline, problem, entry)
    case 'syntax': return problem.message.includes('tab') ? [untab(outline)] : []
    case 'foreign': return foreignFix(outline, problem)
    case 'memory': return memoryFixes(outline)
    case 'target_missing': return entry === undefined ? [] : [
      ...(suggestion === undefined ? [] : [suggested(outline, entry, suggestion, path.at(-1))]),
      { title: 'Change to all-linear', edits: [setValue(outline, entry, 'all-linear')] },
    ]
    default: return entry === undefined || suggestion === undefined ? [] : [suggested(outline, entry, suggestion, path.at(-1))]
  }
}

const removal = (outline: Outline, entry: Entry): Fix => ({ title: `Remove ${entry.key}`, edits: [removeEntry(outline, entry)] })

/** Puts a suggestion in the place of a value, or of one item of a list. */
function suggested(outline: Outline, entry: Entry, suggestion: string, item: string | number | undefined): Fix {
  const text = quoteIfNeeded(suggestion)
  const written = /^[\d.]+$/.test(suggestion) ? suggestion : text
  const span = typeof item === 'number' ? entry.items[item]?.span : undefined
  return { title: `Change to ${suggestion}`, preferred: true, edits: [span === undefined ? setValue(outline, entry, written) : outline.source.edit(span, written)] }
}

function unknownKeyFixes(outline: Outline, entry: Entry, suggestion: string | undefined): Fix[] {
  const fixes: Fix[] = []
  if (suggestion !== undefined) fixes.push({ title: `Change to ${suggestion}`, edits: [renameKey(outline, entry, suggestion)], preferred: true })
  return [...fixes, removal(outline, entry)]
}

/** Where a key belongs that stands elsewhere. */
function homeOf(entry: Entry): RecipeField | undefined {
  return recipeFields.find(({ key }) => key === entry.key) ?? recipeFields.find(({ meta }) => meta.aliases?.includes(entry.key))
}

function moved(outline: Outline, entry: Entry, field: RecipeField): Insertion {
  const [first = '', ...rest] = linesOf(outline, entry)
  return { key: field.key, lines: [first.replace(/^("[^"]*"|'[^']*'|[^:]*)/, field.key), ...rest] }
}

function moveFixes(outline: Outline, entry: Entry): Fix[] {
  const field = homeOf(entry)
  if (field === undefined) return []
  const there = outline.find(field.path)
  if (there !== undefined && there !== entry) return [{ title: `Remove ${entry.key}: ${field.path} is given`, edits: [removeEntry(outline, entry)], preferred: true }]
  return [{ title: `Move to ${field.section}`, edits: moveAll(outline, [entry]), preferred: true }, removal(outline, entry)]
}

/** Keys at the top or in another section that have a section of their own. */
function strayKeys(outline: Outline): Entry[] {
  return outline.entries.filter((entry) => {
    if (entry.field !== undefined || (entry.parent === undefined && (isSection(entry.key) || entry.key === 'version'))) return false
    const field = homeOf(entry)
    return field !== undefined && outline.find(field.path) === undefined && (entry.parent === undefined || isSection(entry.parent)) && entry.style !== 'section'
  })
}

function moveAll(outline: Outline, entries: readonly Entry[]): TextEdit[] {
  const bySection = new Map<SectionName, Insertion[]>()
  const seen = new Set<string>()
  const taken: Entry[] = []
  for (const entry of entries) {
    const field = homeOf(entry)
    if (field === undefined || seen.has(field.path)) continue
    seen.add(field.path)
    taken.push(entry)
    bySection.set(field.section, [...(bySection.get(field.section) ?? []), moved(outline, entry, field)])
  }
  const removed = taken.map((entry) => entrySpan(outline, entry))
  const edits = sectionNames.flatMap((section) => {
    const keys = bySection.get(section)
    return keys === undefined ? [] : [insertKeys(outline, section, keys)]
  })
  // A new section may be wanted in the middle of what is taken out: then it goes before it.
  const placed = edits.map((edit) => {
    const { start } = outline.source.span(edit.range)
    const around = removed.find((span) => start > span.start && start <= span.end && !(start === span.end && outline.source.text[start - 1] !== '\n'))
    if (around === undefined) return edit
    const lines = edit.newText.startsWith(outline.source.eol) ? edit.newText.slice(outline.source.eol.length) + outline.source.eol : edit.newText
    return outline.source.edit({ start: around.start, end: around.start }, lines)
  })
  return [...placed, ...taken.map((entry) => removeEntry(outline, entry))]
}

/** Adds `section.key` or changes it where it stands. */
function put(outline: Outline, path: string, value: string): TextEdit {
  const { section, key } = fieldAt(path)!
  const entry = outline.find(path)
  return entry === undefined ? insertKeys(outline, section, [{ key, lines: [`${key}: ${value}`] }]) : setValue(outline, entry, value)
}

function missingFixes(outline: Outline, path: readonly (string | number)[]): Fix[] {
  if (path[0] !== 'model') return []
  const entry = outline.section('model')
  if (entry === undefined) return [{ title: 'Add the model', edits: [insertAtTop(outline, 'model: Qwen/Qwen2.5-0.5B')], preferred: true }]
  if (entry.style === 'section') return [{ title: 'Add the name of the model', edits: [insertKeys(outline, 'model', [{ key: 'name', lines: ['name: Qwen/Qwen2.5-0.5B'] }])], preferred: true }]
  return [{ title: 'Add the name of the model', edits: [setValue(outline, entry, 'Qwen/Qwen2.5-0.5B')], preferred: true }]
}

function insertAtTop(outline: Outline, line: string): TextEdit {
  const { source } = outline
  const version = outline.section('version')
  const at = version === undefined ? (outline.sections[0] === undefined ? source.text.length : source.lineStart(outline.sections[0].line)) : source.lineEnd(version.line)
  if (version !== undefined) return source.edit({ start: at, end: at }, source.eol + line)
  const mark = at === 0 && source.text.startsWith('\ufeff') ? 1 : 0
  return source.edit({ start: at + mark, end: at + mark }, ' '.repeat(outline.rootIndent) + line + source.eol)
}

function evalFix(outline: Outline, path: readonly (string | number)[]): Fix[] {
  if (path.at(-1) === 'eval_steps') return [{ title: 'Hold 5 % of the rows out for evaluation', edits: [put(outline, 'data.eval_split', '0.05')], preferred: true }]
  if (path.at(-1) === 'save_total_limit') return [{ title: 'Write a checkpoint every 100 steps', edits: [put(outline, 'training.save_steps', '100')], preferred: true }]
  if (path.at(-1) === 'warmup_steps') return [{ title: 'Change to constant_with_warmup', edits: [put(outline, 'training.lr_scheduler_type', 'constant_with_warmup')], preferred: true }]
  return []
}

function conflictFixes(outline: Outline, problem: RecipeProblem, entry: Entry | undefined): Fix[] {
  const path = problem.data.path.join('.')
  const { message } = problem
  const fixes: Fix[] = []
  const offer = (title: string, key: string, value: string): void => {
    fixes.push({ title, edits: [put(outline, key, value)], preferred: fixes.length === 0 })
  }
  if (path === 'data') offer('Add data.local_dataset', 'data.local_dataset', 'data/train.jsonl')
  else if (message.includes('quantised weights cannot be trained')) {
    for (const key of ['training.load_in_4bit', 'training.load_in_8bit']) if (outline.find(key) !== undefined) offer(`Set ${key.split('.')[1]!} to false`, key, 'false')
    offer('Train an adapter instead', 'training.training_type', 'lora')
  } else if (message.includes('would never reach its peak')) {
    const steps = Number(/max_steps \((\d+)\)/.exec(message)?.[1] ?? 0)
    offer(`Set warmup_steps to ${Math.floor(steps / 10)}`, 'training.warmup_steps', String(Math.floor(steps / 10)))
  } else if (message.includes('nothing would be trained')) offer('Set num_epochs to 1', 'training.num_epochs', '1')
  else if (message.includes('is not possible; use training_type: lora')) offer('Train an adapter instead', 'training.training_type', 'lora')
  else if (message.includes('save.method lora needs an adapter')) offer('Change to merged_16bit', 'save.method', 'merged_16bit')
  else if (message.includes('write it alone')) offer('Change to all-linear', 'lora.target_modules', 'all-linear')
  else if (message.includes('names no layer')) offer('Change to all-linear', 'lora.target_modules', 'all-linear')
  else if (message.includes('must be less than data.chunk_size')) offer('Set stride to 0', 'data.stride', '0')
  if (entry?.field !== undefined && path !== 'model') fixes.push(removal(outline, entry))
  return fixes
}

function unavailableFixes(outline: Outline, entry: Entry): Fix[] {
  const { field } = entry
  if (field === undefined) return []
  const known = Object.keys(field.meta.values ?? {}).filter((value) => field.meta.availability?.applies(field.meta.kind === 'list' ? [value] : value) !== true)
  const value = field.meta.kind === 'choice' ? known.includes(String(field.meta.default)) ? String(field.meta.default) : known[0] : undefined
  const fixes: Fix[] = value === undefined ? [] : [{ title: `Change to ${value}`, edits: [setValue(outline, entry, value)] }]
  return [...fixes, { ...removal(outline, entry), preferred: true }]
}

function valueFixes(outline: Outline, problem: RecipeProblem, entry: Entry): Fix[] {
  const { suggestion, path } = problem.data
  if (suggestion !== undefined) return [suggested(outline, entry, suggestion, path.at(-1))]
  const meta = entry.field?.meta
  if (meta === undefined) return entry.key === 'version' ? [{ title: 'Change to 1', edits: [setValue(outline, entry, '1')], preferred: true }] : []
  const fixes: Fix[] = []
  const number = Number(entry.value.replaceAll('_', ''))
  const bound = Number.isNaN(number) ? undefined : meta.min !== undefined && number < meta.min ? meta.min : meta.max !== undefined && number > meta.max ? meta.max
    : meta.kind === 'integer' && !Number.isInteger(number) ? Math.round(number) : undefined
  if (bound !== undefined) fixes.push({ title: `Change to ${formatNumber(bound)}`, edits: [setValue(outline, entry, formatNumber(bound))], preferred: true })
  if (meta.default !== undefined && meta.default !== null) {
    const text = yamlValue(meta.default)
    fixes.push({ title: `Change to the default ${text.length > 40 ? '' : text}`.trim(), edits: [setValue(outline, entry, text)] })
  }
  return [...fixes, removal(outline, entry)]
}

function untab(outline: Outline): Fix {
  const { source } = outline
  const edits: TextEdit[] = []
  for (let line = 0; line < source.lineCount; line++) {
    const indent = /^[ \t]*\t[ \t]*/.exec(source.line(line))
    const start = source.lineStart(line)
    if (indent !== null) edits.push(source.edit({ start, end: start + indent[0].length }, indent[0].replaceAll('\t', '  ')))
  }
  return { title: 'Indent with spaces', edits, preferred: true }
}

function foreignFix({ source }: Outline, problem: RecipeProblem): Fix[] {
  const { foreign } = problem.data
  const migration = foreign === undefined ? undefined : migrateForeign(source.text, foreign)
  if (foreign === undefined || migration === undefined) return []
  return [{ title: `Turn this file of ${foreignName[foreign]} into a recipe`, edits: [source.edit({ start: 0, end: source.text.length }, migration.text)], preferred: true }]
}

function memoryFixes(outline: Outline): Fix[] {
  const fixes: Fix[] = []
  const length = Number(outline.value('training.max_seq_length') ?? 2048)
  const checkpointing = outline.value('training.gradient_checkpointing')
  if (checkpointing !== undefined && !['auto', 'full'].includes(checkpointing)) {
    fixes.push({ title: 'Recompute activations as needed', edits: [put(outline, 'training.gradient_checkpointing', 'auto')], preferred: true })
  }
  if (length > 256) fixes.push({ title: `Halve max_seq_length to ${Math.floor(length / 2)}`, edits: [put(outline, 'training.max_seq_length', String(Math.floor(length / 2)))] })
  const rank = Number(outline.value('lora.lora_r') ?? 64)
  if (rank > 16 && outline.value('training.training_type') !== 'full') fixes.push({ title: 'Lower lora_r to 16', edits: [put(outline, 'lora.lora_r', '16')] })
  if (outline.value('training.training_type') === 'full') fixes.push({ title: 'Train an adapter instead', edits: [put(outline, 'training.training_type', 'lora')] })
  return fixes
}

const decimal = /^[-+]?\d*\.?\d+$/
const scientific = /^[-+]?\d*\.?\d+[eE][-+]?\d+$/

/** Other ways to write what stands at an offset: the number, the key, the whole file. */
function rewrites(outline: Outline, offset: number): Fix[] {
  const { source } = outline
  const fixes: Fix[] = []
  const entry = outline.at(offset)
  if (entry?.field !== undefined) {
    const { field, value } = entry
    if (field.meta.kind === 'number' && decimal.test(value) && Number(value) !== 0 && Math.abs(Number(value)) < 0.01) {
      const text = Number(value).toExponential().replace('e+', 'e')
      fixes.push({ title: `Write as ${text}`, edits: [source.edit(entry.valueSpan, text)] })
    } else if (field.meta.kind === 'number' && scientific.test(value)) {
      const text = plainDecimal(Number(value))
      if (text !== undefined) fixes.push({ title: `Write as ${text}`, edits: [source.edit(entry.valueSpan, text)] })
    }
    if (entry.section !== undefined && entry.key !== field.key && findField(field.section, entry.key) === field) {
      fixes.push({ title: `Use the usual name ${field.key}`, edits: [renameKey(outline, entry, field.key)] })
    }
  }
  const aliases = outline.entries.filter(({ field, key, section }) => section !== undefined && field !== undefined && field.key !== key)
  if (aliases.length > 1) fixes.push({ title: 'Use the usual names of all keys', edits: aliases.map((alias) => renameKey(outline, alias, alias.field!.key)) })
  return fixes
}

/** A number without an exponent; undefined when that would be no easier to read. */
function plainDecimal(value: number): string | undefined {
  for (let digits = 0; digits <= 10; digits++) {
    const text = value.toFixed(digits)
    if (Number(text) === value) return text
  }
  return undefined
}

/** Everything that can be put right without asking: names, sections, tabs, layout. */
export function fixAll(text: string, diagnose: (source: SourceText) => readonly RecipeProblem[], apply: (source: SourceText, edits: readonly TextEdit[]) => string): string {
  let current = text
  const safe = new Set(['unknown_key', 'wrong_section', 'syntax'])
  for (let round = 0; round < 60; round++) {
    const source = new SourceText(current)
    const outline = new Outline(source)
    const fix = diagnose(source).filter(({ code }) => safe.has(code)).flatMap((problem) => fixesFor(outline, problem)).find(({ preferred }) => preferred === true)
    const next = fix === undefined ? current : apply(source, fix.edits)
    if (next === current) break
    current = next
  }
  return formatRecipeText(current)
}
