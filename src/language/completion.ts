import type { CompletionItem, MarkupContent, Position } from 'vscode-languageserver'
import { recipeFields, sectionDocs, sectionNames, type RecipeField, type SectionName } from '#shared/recipe.ts'
import { valueCompletions } from './completeValues.ts'
import { itemKind, markdown, order, snippetFormat, suggestAgain } from './completionItems.ts'
import { cursorAt, type KeyCursor } from './cursor.ts'
import { availabilityWord, detailText, fieldMarkdown, summary, yamlValue } from './fieldText.ts'
import { Outline } from './outline.ts'
import { expandSnippet, sectionSnippets, wholeRecipes, type Snippet } from './snippets.ts'
import type { SourceText, Span } from './text.ts'
import type { Workspace } from './workspace.ts'

/** Characters that open the list of completions. */
export const triggerCharacters = [':', ' ', '"', "'", '/', '[', ',', '{']

/** Completions at a position; they do not need a document that parses. */
export async function complete(source: SourceText, position: Position, workspace: Workspace): Promise<CompletionItem[]> {
  const outline = new Outline(source)
  const cursor = cursorAt(outline, position)
  switch (cursor.kind) {
    case 'none':
      return []
    case 'version':
      return [
        { label: '1', kind: itemKind.value, textEdit: source.edit(cursor.word, '1'), detail: 'version of the recipe format' },
      ]
    case 'key':
      return keyCompletions(outline, cursor)
    case 'value':
      return valueCompletions(outline, cursor, workspace)
  }
}

const escapeSnippet = (text: string): string => text.replace(/[\\$}]/g, '\\$&')

/** What is inserted behind `key: `, and whether the values are listed then. */
function valueSnippet({ meta, path }: RecipeField): { text: string; suggest: boolean } {
  const live =
    meta.path === 'model' ||
    meta.path === 'dataset' ||
    meta.path === 'checkpoint' ||
    path === 'lora.init_adapter' ||
    path === 'data.text_column' ||
    path === 'lora.target_modules' ||
    path === 'lora.modules_to_save'
  if (live || meta.kind === 'boolean' || meta.kind === 'choice' || meta.values !== undefined) return { text: '', suggest: true }
  if (meta.kind === 'mapping') return { text: '{ $0 }', suggest: false }
  const first =
    typeof meta.default === 'number' || (typeof meta.default === 'string' && meta.default !== '')
      ? meta.default
      : meta.examples?.[0]
  const text = first === undefined || Array.isArray(first) ? '' : yamlValue(first)
  return { text: text === '' ? '$0' : `\${1:${escapeSnippet(text)}}`, suggest: false }
}

/** What each item says does not depend on the document: made once. */
const keyDocs = new Map<string, { readonly documentation: MarkupContent; readonly detail: string; readonly filter: string }>()
function keyText(field: RecipeField) {
  let text = keyDocs.get(field.path)
  if (text === undefined) {
    const word = availabilityWord(field.meta)
    text = {
      documentation: markdown(fieldMarkdown(field, false)),
      detail: `${detailText(field.meta)}${word === '' ? '' : ` · ${word}`} · ${summary(field.meta).replaceAll('`', '')}`,
      filter: [field.key, ...(field.meta.aliases ?? [])].join(' '),
    }
    keyDocs.set(field.path, text)
  }
  return text
}

function keyCompletions(outline: Outline, cursor: KeyCursor): CompletionItem[] {
  return cursor.section === undefined ? topCompletions(outline, cursor) : fieldCompletions(outline, cursor, cursor.section)
}

function fieldCompletions(outline: Outline, cursor: KeyCursor, section: SectionName): CompletionItem[] {
  const { source } = outline
  const written = outline.children(section).filter(({ keySpan }) => keySpan.start !== cursor.word.start)
  const present = new Set(written.map(({ field }) => field?.path))
  const items = recipeFields
    .filter((field) => field.section === section && !present.has(field.path))
    .map((field, index): CompletionItem => {
      const { text, suggest } = valueSnippet(field)
      const said = keyText(field)
      const body = cursor.hasColon ? field.key : `${field.key}: ${text}`
      return {
        label: field.key,
        kind: itemKind.property,
        detail: said.detail,
        documentation: said.documentation,
        filterText: said.filter,
        sortText: order(index),
        textEdit: source.edit(cursor.word, body),
        insertTextFormat: snippetFormat,
        ...(suggest && !cursor.hasColon ? { command: suggestAgain } : {}),
      }
    })
  if (cursor.inFlow || cursor.hasColon) return items
  const fits = ({ body }: Snippet): boolean =>
    body.split('\n').every((line) => !present.has(`${section}.${line.slice(0, line.indexOf(':'))}`))
  return [
    ...items,
    ...(sectionSnippets[section] ?? [])
      .filter(fits)
      .map((snippet, index) => snippetItem(source, snippet, cursor.word, index, outline.rootIndent + outline.step)),
  ]
}

/** An item for several lines; the editor indents the lines that follow the first as the line they go into. */
function snippetItem(
  source: SourceText,
  { label, detail, doc, body }: Snippet,
  word: Span,
  index: number,
  step: number,
): CompletionItem {
  const indented = step === 2 ? body : body.replaceAll(/^ {2}/gm, ' '.repeat(step))
  return {
    label,
    kind: itemKind.snippet,
    detail,
    sortText: `z${order(index)}`,
    insertTextFormat: snippetFormat,
    documentation: markdown(`${doc}\n\n\`\`\`yaml\n${expandSnippet(body).trim()}\n\`\`\``),
    textEdit: source.edit(word, indented),
  }
}

function topCompletions(outline: Outline, cursor: KeyCursor): CompletionItem[] {
  const { source } = outline
  const present = new Set(outline.sections.filter(({ keySpan }) => keySpan.start !== cursor.word.start).map(({ key }) => key))
  const items: CompletionItem[] = []
  const add = (label: string, detail: string, doc: string, body: string, suggest: boolean): void => {
    items.push({
      label,
      detail,
      kind: itemKind.module,
      documentation: markdown(doc),
      sortText: order(items.length + 1),
      insertTextFormat: snippetFormat,
      textEdit: source.edit(cursor.word, cursor.hasColon ? label : body),
      ...(suggest && !cursor.hasColon ? { command: suggestAgain } : {}),
    })
  }
  const empty = present.size === 0 && !cursor.inFlow
  if (empty)
    wholeRecipes.forEach((snippet, index) =>
      items.push({ ...snippetItem(source, snippet, cursor.word, index, 2), sortText: `0000${index}` }),
    )
  if (!present.has('version'))
    add('version', 'version of the recipe format', 'Version of the recipe format: 1.', 'version: 1', false)
  for (const name of sectionNames) {
    if (present.has(name)) continue
    const body = cursor.inFlow ? `${name}: { $0 }` : name === 'model' ? 'model: ' : `${name}:\n${' '.repeat(outline.step)}$0`
    const keys = recipeFields
      .filter(({ section }) => section === name)
      .map(({ key }) => `\`${key}\``)
      .join(', ')
    add(name, name === 'model' ? 'required' : 'section', `${sectionDocs[name]}\n\nKeys: ${keys}.`, body, true)
  }
  return items
}
