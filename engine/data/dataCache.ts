import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { readError } from '../io/fileSystem.ts'
import { chatTemplateFor } from './chatTemplate.ts'
import type { EncodePlan } from './rowEncoder.ts'
import type { RowRange } from './splits.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Raised when the same inputs make other samples, or the file is laid out in another way. */
const version = 2

/** Where tokenised data is kept: `${XDG_CACHE_HOME:-~/.cache}/unsloth-vscode/data`. */
export function dataCacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  const base = environment.XDG_CACHE_HOME
  return join(base !== undefined && base !== '' ? base : join(homedir(), '.cache'), 'unsloth-vscode', 'data')
}

/** Bytes of files; 0 for one that is not there, which reading will tell. */
export async function totalBytes(files: readonly string[]): Promise<number> {
  const sizes = await Promise.all(
    files.map((file) =>
      stat(file).then(
        ({ size }) => size,
        () => 0,
      ),
    ),
  )
  return sizes.reduce((sum, size) => sum + size, 0)
}

async function hashFile(file: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
  } catch (error) {
    throw readError(error, file, 'data set')
  }
  return hash.digest('hex')
}

const tokenizerFiles = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'config.json',
]

export interface CacheInputs {
  readonly files: readonly string[]
  readonly range: RowRange
  readonly skipBadRows: boolean
  readonly plan: EncodePlan
  readonly tokenizer: Tokenizer
  /** What else decides the rows. */
  readonly extension?: readonly unknown[]
}

/** The name of what these inputs make: by contents, so that a changed file or tokenizer is read anew. */
export async function cacheKey({ files, range, skipBadRows, plan, tokenizer, extension = [] }: CacheInputs): Promise<string> {
  const hash = createHash('sha256')
  const add = (value: unknown): void => {
    hash.update(`${JSON.stringify(value)}\0`)
  }
  const template = usedTemplate(tokenizer, plan)
  // The time matters only to a template that asks for it.
  const { now, ...rest } = plan
  add({
    version,
    rest,
    template,
    now: template?.includes('strftime_now') === true ? now : null,
    to: String(range.to),
    from: range.from,
    skipBadRows,
    extension,
  })
  add([tokenizer.options, [...tokenizer.chatTemplates]])
  for (const name of tokenizerFiles) {
    const bytes = await readFile(join(tokenizer.folder, name)).catch(() => undefined)
    add([name, bytes === undefined ? null : createHash('sha256').update(bytes).digest('hex')])
  }
  for (const file of files) add([file, await hashFile(file)])
  return hash.digest('hex')
}

/** Source of the template of conversations, when one is used. */
function usedTemplate(tokenizer: Tokenizer, { chatTemplate, format }: EncodePlan): string | undefined {
  if (['text', 'alpaca', 'raw'].includes(format.format)) return undefined
  try {
    return chatTemplateFor(tokenizer, chatTemplate === undefined ? {} : { template: chatTemplate }).source
  } catch {
    return undefined
  }
}

/** The file of a key. */
export const cachePath = (folder: string, key: string): string => join(folder, `${key.slice(0, 40)}.tokens`)
