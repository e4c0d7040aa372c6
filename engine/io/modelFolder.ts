import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import type { HfConfig } from '../model/config.ts'
import { readError } from './fileSystem.ts'
import { decodeUtf8, isJsonObject, parseJson, type JsonOptions } from './jsonText.ts'

/** Files that belong to a tokenizer or processor, in the order in which they are shown and copied. */
export const tokenizerFileNames = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'processor_config.json',
  'preprocessor_config.json',
]

/** `neither`: a folder that is no model. A folder that is both is refused when it is opened. */
export type FolderKind = 'model' | 'adapter' | 'neither'

/** A parsed JSON file of the folder; `Config` gives typed access to it. */
export interface ConfigFile {
  readonly values: HfConfig
  /** Its path, for messages. */
  readonly where: string
}

export interface ModelFolder {
  readonly path: string
  readonly kind: FolderKind
  /** config.json of a model. */
  readonly config: ConfigFile | undefined
  readonly generationConfig: ConfigFile | undefined
  /** adapter_config.json of a LoRA adapter. */
  readonly adapterConfig: ConfigFile | undefined
  /** Names of those there. */
  readonly tokenizerFiles: readonly string[]
}

/** The JSON value in a file; every failure names the file, a syntax error also line and column. */
export async function readJsonFile(path: string, options: Omit<JsonOptions, 'file'> = {}): Promise<unknown> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw readError(error, path, 'JSON file')
  })
  const text = decodeUtf8(bytes)
  if (text === undefined)
    throw new UnslothError('FILE_FORMAT', `${path}: not UTF-8 text.`, { hint: 'Save it as UTF-8, or fetch it again.' })
  return parseJson(text, { file: path, duplicateKeys: 'last', python: true, ...options })
}

/** The JSON object in a file. With `keepNumbers`, `pythonJson` writes it again as it was. */
export async function readJsonObject(path: string, options: Omit<JsonOptions, 'file'> = {}): Promise<HfConfig> {
  const value = await readJsonFile(path, options)
  if (!isJsonObject(value))
    throw new UnslothError('FILE_FORMAT', `${path}: not a JSON object.`, { hint: 'Fetch the file again.' })
  return value
}

async function readOptional(folder: string, name: string, names: ReadonlySet<string>): Promise<ConfigFile | undefined> {
  if (!names.has(name)) return undefined
  const path = join(folder, name)
  return { values: await readJsonObject(path), where: path }
}

/** Reads the small files of a folder and decides what it is; `expect` turns anything else into an error. */
export async function readModelFolder(path: string, expect?: 'model' | 'adapter'): Promise<ModelFolder> {
  const names = new Set(
    await readdir(path).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOTDIR')
        throw new UnslothError('FILE_NOT_FOUND', `${path}: a file, where the folder of a model is expected.`, {
          hint: 'Give the folder that has config.json.',
          cause: error,
        })
      throw readError(error, path, 'model folder')
    }),
  )
  if (names.has('config.json') && names.has('adapter_config.json'))
    throw new UnslothError('MODEL_INVALID', `${path}: has a LoRA adapter (adapter_config.json) and a base model (config.json).`, {
      hint: 'Keep them in two folders, so that it is clear which one is meant.',
    })
  const kind: FolderKind = names.has('config.json') ? 'model' : names.has('adapter_config.json') ? 'adapter' : 'neither'
  if (expect !== undefined && kind !== expect) throw wrongKind(path, kind, expect)
  return {
    path,
    kind,
    config: await readOptional(path, 'config.json', names),
    generationConfig: await readOptional(path, 'generation_config.json', names),
    adapterConfig: await readOptional(path, 'adapter_config.json', names),
    tokenizerFiles: tokenizerFileNames.filter((name) => names.has(name)),
  }
}

function wrongKind(path: string, kind: FolderKind, expect: 'model' | 'adapter'): UnslothError {
  if (kind === 'neither') {
    const [what, file] = expect === 'model' ? ['a model', 'config.json'] : ['a LoRA adapter', 'adapter_config.json']
    return new UnslothError('FILE_NOT_FOUND', `${path}: not ${what}: ${file} is not there.`, {
      hint: 'Give a folder in the layout of the Hugging Face Hub.',
    })
  }
  return kind === 'adapter'
    ? new UnslothError('MODEL_INVALID', `${path}: a LoRA adapter, where a whole model is expected.`, {
        hint: 'Give the folder of its base model, or merge the adapter first.',
      })
    : new UnslothError('MODEL_INVALID', `${path}: a whole model, where a LoRA adapter is expected.`, {
        hint: 'Give the folder that has adapter_config.json.',
      })
}
