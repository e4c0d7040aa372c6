import { fieldAt, recipeFields, secretKeys, sectionNames, validateRecipe } from '#shared/recipe.ts'
import { yamlValue } from '../fieldText.ts'

/** A key of another program that has no place in the recipe, and why. */
export interface Note {
  readonly key: string
  readonly value: unknown
  readonly reason: string
}

const secretLike = /(?:token|api_?key|secret|password)$/i
const notSecret = new Set([
  'pad_token',
  'bos_token',
  'eos_token',
  'unk_token',
  'resize_token_embeddings_to_32x',
  'special_tokens',
])

/** Whether a key holds what must not be written anywhere again. */
export const isSecret = (key: string): boolean => secretKeys.has(key) || (secretLike.test(key) && !notSecret.has(key))

/** A recipe that grows key by key out of another program's file, and what could not be carried over. */
export class RecipeDraft {
  private readonly values = new Map<string, unknown>()
  readonly notes: Note[] = []

  /** Sets `section.key`; empty values leave the default. */
  set(path: string, value: unknown): void {
    if (fieldAt(path) === undefined) throw new Error(`there is no key ${path}`)
    if (value === null || value === undefined || value === '') return
    this.values.set(path, value)
  }

  has(path: string): boolean {
    return this.values.has(path)
  }

  get(path: string): unknown {
    return this.values.get(path)
  }

  /** Sets a key that was not set: where the other program's default is not ours. */
  orElse(path: string, value: unknown): void {
    if (!this.values.has(path)) this.set(path, value)
  }

  delete(path: string): void {
    this.values.delete(path)
  }

  note(key: string, value: unknown, reason: string): void {
    this.notes.push({ key, value: isSecret(key) ? undefined : value, reason })
  }

  private document(): Record<string, Record<string, unknown>> {
    const tree: Record<string, Record<string, unknown>> = {}
    for (const [path, value] of this.values) {
      const [section, key] = path.split('.') as [string, string]
      const part = tree[section] ?? {}
      part[key] = value
      tree[section] = part
    }
    return tree
  }

  /** Takes out, with a note, what a recipe would not accept. */
  settle(): void {
    for (let round = 0; round < 50; round++) {
      const { issues } = validateRecipe(this.document())
      const wrong = issues.find(({ severity, path }) => severity === 'error' && this.values.has(path.slice(0, 2).join('.')))
      if (wrong === undefined) return
      const path = wrong.path.slice(0, 2).join('.')
      this.note(path, this.values.get(path), wrong.message)
      this.values.delete(path)
    }
  }

  /** The recipe as YAML, sections and keys in their order; notes as comments at the end. */
  text(name: string, comments: readonly string[], eol: string): string {
    const lines = [...comments, ...(comments.length > 0 ? [''] : []), 'version: 1']
    for (const section of sectionNames) {
      const keys = recipeFields.filter((field) => field.section === section && this.values.has(field.path))
      if (keys.length === 0) continue
      if (section === 'model' && keys.length === 1 && keys[0]!.key === 'name') {
        lines.push(`model: ${yamlValue(this.values.get('model.name'))}`)
        continue
      }
      lines.push(`${section}:`, ...keys.map(({ key, path }) => `  ${key}: ${yamlValue(this.values.get(path))}`))
    }
    if (this.notes.length > 0) {
      lines.push('', `# Not carried over from ${name}:`, ...this.notes.map((note) => `#   ${noteText(note)}`))
    }
    return lines.join(eol) + eol
  }
}

/** A note in one line. */
export function noteText({ key, value, reason }: Note): string {
  const shown = value === undefined ? '' : `: ${JSON.stringify(value)}`
  const clean = (shown.length > 80 ? `${shown.slice(0, 79)}…` : shown).replace(/[\r\n\u0085\u2028\u2029]/g, ' ')
  return `${key.replace(/\s+/g, ' ')}${clean} (${reason.replace(/\s+/g, ' ')})`
}
