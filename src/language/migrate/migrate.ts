import { afterMark } from '../text.ts'
import { readAxolotl } from './axolotl.ts'
import { foreignKind, foreignName, topLevel, type ForeignKind } from './foreign.ts'
import { readLlamaFactory } from './llamaFactory.ts'
import { isSecret, noteText, RecipeDraft } from './recipeDraft.ts'
import { readStudio } from './studio.ts'

export interface Migration {
  readonly kind: ForeignKind
  /** The recipe; what could not be carried over stands at its end as comments. */
  readonly text: string
  /** The same notes, one line each. */
  readonly notes: readonly string[]
}

const readers: Readonly<Record<ForeignKind, (draft: RecipeDraft, all: Readonly<Record<string, unknown>>) => void>> = {
  axolotl: readAxolotl,
  'llama-factory': readLlamaFactory,
  studio: readStudio,
}

/** Comment lines before the first key: a title or a licence, which stay on top. */
function leadingComments(text: string): string[] {
  const lines: string[] = []
  for (const line of text.split(/\r\n|\n|\r/)) {
    if (line.startsWith('#')) lines.push(line.trimEnd())
    else if (line.trim() !== '' && line !== '---') break
  }
  return lines
}

/** A file of Axolotl, LLaMA-Factory or a flat one of Studio as a recipe; undefined for anything else. Secrets are left out. */
export function migrateForeign(text: string, kind: ForeignKind | undefined = foreignKind(text)): Migration | undefined {
  const all = kind === undefined ? undefined : topLevel(text)
  if (kind === undefined || all === undefined) return undefined
  const draft = new RecipeDraft()
  const open: Record<string, unknown> = {}
  for (const [key, value] of Object.entries(all)) {
    if (!isSecret(key)) open[key] = value
    else if (value !== null && value !== '') draft.note(key, undefined, 'a secret: it belongs in the environment, not in a file')
  }
  readers[kind](draft, open)
  draft.settle()
  const eol = text.includes('\r\n') ? '\r\n' : '\n'
  return {
    kind,
    text: text.slice(0, afterMark(text)) + draft.text(foreignName[kind], leadingComments(text.slice(afterMark(text))), eol),
    notes: draft.notes.map(noteText),
  }
}
