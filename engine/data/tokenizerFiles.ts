import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { decodeUtf8, isJsonObject, parseJson } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { fastForm, readSentencePiece } from './sentencePiece.ts'

/** An added token as tokenizer.json and `added_tokens_decoder` describe it. */
export interface AddedTokenSpec {
  readonly id: number
  readonly content: string
  readonly special: boolean
  readonly [flag: string]: unknown
}

/** The tokens that have a role, by their text. */
export interface SpecialTokens {
  readonly bos?: string
  readonly eos?: string
  readonly pad?: string
  readonly unk?: string
}

/** What the files of a tokenizer say, brought into one form. */
export interface TokenizerFiles {
  readonly folder: string
  /** tokenizer.json, with the added tokens of tokenizer_config.json that it lacks. */
  readonly definition: Readonly<Record<string, unknown>> & { readonly added_tokens: readonly AddedTokenSpec[] }
  readonly config: Readonly<Record<string, unknown>>
  readonly tokens: SpecialTokens
  /** `add_bos_token` and `add_eos_token` when the configuration decides them. */
  readonly addBos: boolean | undefined
  readonly addEos: boolean | undefined
  /** Templates by name; the usual one is `default`. */
  readonly chatTemplates: ReadonlyMap<string, string>
  /** From generation_config.json, else config.json. */
  readonly bosId: number | undefined
  readonly eosIds: readonly number[]
  /** Of the configurations: the id that pads, and how many rows the embedding has. */
  readonly padId: number | undefined
  readonly rows: number | undefined
  /** Whether tokenizer.json was made from tokenizer.model, which was all there was. */
  readonly converted: boolean
}

type Json = Record<string, unknown>

const fetchAgain = 'Fetch the file again, or copy it from the folder of the base model.'
const broken = (path: string, what: string, hint = fetchAgain, cause?: unknown): UnslothError =>
  new UnslothError('TOKENIZER', `${path}: ${what}.`, { hint, cause })

async function readText(path: string): Promise<string> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw broken(path, `could not be read: ${(error as Error).message}`, 'Check the path and its permissions.', error)
  })
  const text = decodeUtf8(bytes)
  if (text === undefined) throw broken(path, 'not UTF-8 text')
  return text
}

/** JSON.parse is much faster on the megabytes of a vocabulary; the careful parser then tells what is wrong, and where. */
async function readObject(path: string): Promise<Json> {
  const text = await readText(path)
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    try {
      value = parseJson(text, { file: path, duplicateKeys: 'last', python: true })
    } catch (error) {
      throw new UnslothError('TOKENIZER', (error as Error).message, { hint: fetchAgain, cause: error })
    }
  }
  if (!isJsonObject(value)) throw broken(path, 'not a JSON object')
  return value
}

/** A token given as text or as an object with `content`. */
function tokenText(value: unknown, key: string, path: string): string | undefined {
  if (value === undefined || value === null) return undefined
  const text = isJsonObject(value) ? value.content : value
  if (typeof text !== 'string') throw broken(path, `${key} is neither a text nor an object with "content"`)
  return text === '' ? undefined : text
}

function addedToken(value: unknown, path: string): AddedTokenSpec {
  if (!isJsonObject(value) || typeof value.content !== 'string' || !Number.isSafeInteger(value.id) || (value.id as number) < 0)
    throw broken(path, 'an entry of the added tokens has no "content" text or no whole number as "id"')
  return { ...value, id: value.id as number, content: value.content, special: value.special === true }
}

/** Those of tokenizer.json, then those that only `added_tokens_decoder` knows. */
function addedTokens(definition: Json, path: string, config: Json, configPath: string): AddedTokenSpec[] {
  const listed = definition.added_tokens ?? []
  if (!Array.isArray(listed)) throw broken(path, '"added_tokens" is not a list')
  const tokens = listed.map((entry) => addedToken(entry, path))
  const known = new Set(tokens.map(({ content }) => content))
  const more = config.added_tokens_decoder ?? {}
  if (!isJsonObject(more)) throw broken(configPath, '"added_tokens_decoder" is not an object')
  for (const [id, entry] of Object.entries(more)) {
    const token = addedToken(isJsonObject(entry) ? { ...entry, id: Number(id) } : entry, configPath)
    if (!known.has(token.content)) tokens.push(token)
  }
  return tokens
}

function templatesOf(value: unknown, path: string): Map<string, string> {
  const templates = new Map<string, string>()
  if (value === undefined || value === null) return templates
  if (typeof value === 'string') return templates.set('default', value)
  for (const entry of Array.isArray(value) ? (value as unknown[]) : [undefined]) {
    if (!isJsonObject(entry) || typeof entry.name !== 'string' || typeof entry.template !== 'string')
      throw broken(path, '"chat_template" is neither a text nor a list of objects with "name" and "template"')
    templates.set(entry.name, entry.template)
  }
  return templates
}

async function chatTemplates(folder: string, names: ReadonlySet<string>, config: Json): Promise<Map<string, string>> {
  const templates = templatesOf(config.chat_template, join(folder, 'tokenizer_config.json'))
  const older = join(folder, 'chat_template.json')
  const inOlder = names.has('chat_template.json') ? templatesOf((await readObject(older)).chat_template, older) : []
  for (const [name, text] of inOlder) templates.set(name, text)
  if (names.has('chat_template.jinja')) templates.set('default', await readText(join(folder, 'chat_template.jinja')))
  return templates
}

interface ModelFacts {
  bosId: number | undefined
  eosIds: number[]
  padId: number | undefined
  rows: number | undefined
}

/** Ids of roles of the configuration of generation, else of the model, and the rows of its embedding. */
async function modelFacts(folder: string, names: ReadonlySet<string>): Promise<ModelFacts> {
  const isId = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0
  const facts: ModelFacts = { bosId: undefined, eosIds: [], padId: undefined, rows: undefined }
  for (const name of ['generation_config.json', 'config.json']) {
    if (!names.has(name)) continue
    const config = await readObject(join(folder, name))
    if (facts.bosId === undefined && isId(config.bos_token_id)) facts.bosId = config.bos_token_id
    if (facts.padId === undefined && isId(config.pad_token_id)) facts.padId = config.pad_token_id
    if (facts.eosIds.length === 0) facts.eosIds = [config.eos_token_id].flat().filter(isId)
    const text = isJsonObject(config.text_config) ? config.text_config : config
    if (name === 'config.json' && isId(text.vocab_size)) facts.rows = text.vocab_size
  }
  return facts
}

/** What is in a folder. */
async function namesIn(folder: string): Promise<Set<string>> {
  return new Set(
    await readdir(folder).catch((error: unknown) => {
      throw broken(
        folder,
        `could not be read as a folder: ${(error as Error).message}`,
        'Give the folder of a model that has tokenizer.json.',
        error,
      )
    }),
  )
}

/** tokenizer.json, or what tokenizer.model makes of it. */
async function readDefinition(folder: string, names: ReadonlySet<string>): Promise<{ definition: Json; converted: boolean }> {
  const path = join(folder, 'tokenizer.json')
  if (names.has('tokenizer.json')) return { definition: await readObject(path), converted: false }
  const made = names.has('tokenizer.model') ? fastForm(await readSentencePiece(join(folder, 'tokenizer.model'))) : undefined
  if (made !== undefined) return { definition: { ...made }, converted: true }
  const others = ['tokenizer.model', 'vocab.json', 'merges.txt'].filter((name) => names.has(name))
  throw new UnslothError('TOKENIZER', `${path}: no such file.`, {
    hint:
      others.length === 0
        ? 'Copy tokenizer.json and tokenizer_config.json from the folder of the base model.'
        : `Only ${others.map((name) => quote(name)).join(' and ')} are there, an older form: ` +
          'take tokenizer.json from a newer upload of the model.',
  })
}

/**
 * Reads tokenizer.json and the small files around it; every failure is a TOKENIZER error naming the file. `modelFolder`: where
 * the configurations of the model are, when not there.
 */
export async function readTokenizerFiles(folder: string, modelFolder = folder): Promise<TokenizerFiles> {
  const names = await namesIn(folder)
  const { definition, converted } = await readDefinition(folder, names)
  const path = join(folder, 'tokenizer.json')
  const optional = (name: string): Promise<Json> => (names.has(name) ? readObject(join(folder, name)) : Promise.resolve({}))
  const config = await optional('tokenizer_config.json')
  const map = await optional('special_tokens_map.json')
  const configPath = join(folder, 'tokenizer_config.json')
  const token = (key: string): string | undefined =>
    tokenText(config[key], key, configPath) ?? tokenText(map[key], key, join(folder, 'special_tokens_map.json'))
  const [bos, eos, pad, unk] = [token('bos_token'), token('eos_token'), token('pad_token'), token('unk_token')]
  const flag = (key: string): boolean | undefined => (typeof config[key] === 'boolean' ? config[key] : undefined)
  return {
    folder,
    definition: { ...definition, added_tokens: addedTokens(definition, path, config, configPath) },
    config,
    tokens: { ...(bos && { bos }), ...(eos && { eos }), ...(pad && { pad }), ...(unk && { unk }) },
    // SentencePiece's tokenizers put BOS before a text unless they are told not to.
    addBos: flag('add_bos_token') ?? (converted ? true : undefined),
    addEos: flag('add_eos_token'),
    chatTemplates: await chatTemplates(folder, names, config),
    ...(await modelFacts(modelFolder, modelFolder === folder ? names : await namesIn(modelFolder))),
    converted,
  }
}
