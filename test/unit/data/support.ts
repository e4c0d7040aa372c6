import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { UnslothError, type ErrorCode } from '#shared/errors.ts'
import { loadTokenizer, type Tokenizer } from '../../../engine/data/tokenizer.ts'

export const fixtures = join(import.meta.dirname, '../../fixtures/data')

const loaded = new Map<string, Promise<Tokenizer>>()

/** A tokenizer of the fixtures, loaded once for all tests. */
export function fixtureTokenizer(name: 'stories260k' | 'llama' | 'qwen2.5' | 'mistral-v0.3'): Promise<Tokenizer> {
  const tokenizer = loaded.get(name) ?? loadTokenizer(join(fixtures, name))
  loaded.set(name, tokenizer)
  return tokenizer
}

const folders: string[] = []

/** A new folder with these files; `removeFolders` removes all of them. */
export function folderWith(files: Readonly<Record<string, string | Uint8Array>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-data-'))
  folders.push(folder)
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content)
  return folder
}

export function removeFolders(): void {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
}

/** Path of a new file with this content. */
export const fileWith = (name: string, content: string | Uint8Array): string => join(folderWith({ [name]: content }), name)

export const jsonl = (rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join('')

/** Checks that an UnslothError of this code comes, with these patterns in its message (and hint, after a `hint:`). */
export async function rejects(promise: Promise<unknown>, code: ErrorCode, ...patterns: readonly RegExp[]): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(UnslothError.is(error, code), `expected ${code}, got ${String(error)}`)
    for (const pattern of patterns) assert.match(`${error.message}\nhint: ${error.hint ?? ''}`, pattern)
    return true
  })
}
