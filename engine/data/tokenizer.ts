import { join } from 'node:path'
import { ByteFallbackDecoder, Decoder, Tokenizer as HubTokenizer } from '@huggingface/tokenizers'
import { UnslothError } from '#shared/errors.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { readTokenizerFiles, type TokenizerFiles } from './tokenizerFiles.ts'
import { examineTemplate } from './templateRepair.ts'
import { mapEosToken, repairTokenizer, type TokenizerRepair } from './tokenizerRepair.ts'
import { WordEncoder, type TokenMarks } from './wordEncoder.ts'

/** How a tokenizer differs from what its files say. */
export interface TokenizerOptions {
  /** `false`: nothing is repaired. */
  readonly fix?: boolean
  /** A token to make the EOS token, because the chat template that is used ends turns with it. */
  readonly stopToken?: string
  /** A Jinja template to take in the place of the usual one. */
  readonly chatTemplate?: string
  /** Where the configurations of the model are, when not beside the tokenizer. */
  readonly modelFolder?: string
}

/** A chat template that was repaired. */
export interface TemplateRepair {
  readonly check: 'template'
  readonly found: string
  readonly changed: string
}

/** Text to token ids and back. Everything that knows about tokenizers goes through this. */
export interface Tokenizer {
  /** The files' folder, for messages. */
  readonly folder: string
  /** How it was loaded. */
  readonly options: TokenizerOptions
  /** One more than the largest id. */
  readonly vocabSize: number
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  /** Their texts, as chat templates take them. */
  readonly bosToken: string | undefined
  readonly eosToken: string | undefined
  readonly padToken: string | undefined
  readonly unkToken: string | undefined
  /** Every id that ends a generated text: `eosId` and those of generation_config.json. */
  readonly eosIds: readonly number[]
  /** Ids of tokens marked special. */
  readonly specialIds: ReadonlySet<number>
  /** What `addSpecialTokens` puts before and after the ids of a text. */
  readonly prefixIds: readonly number[]
  readonly suffixIds: readonly number[]
  /** Whether a text gets a BOS of its own. */
  readonly addsBos: boolean
  /** Chat templates by name; the usual one is `default`. */
  readonly chatTemplates: ReadonlyMap<string, string>
  /** The usual template as the files have it, where it was repaired. */
  readonly originalTemplate: string | undefined
  /** What was repaired when it was loaded. */
  readonly repairs: readonly (TokenizerRepair | TemplateRepair)[]
  /** The files that it was made from, after the repairs. */
  readonly files: TokenizerFiles
  /** Special tokens that stand in the text become their ids. Default: nothing is put before or after. */
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): Int32Array
  /** Ids that no token has are left out. Default: special tokens are shown. */
  decode(ids: ArrayLike<number>, options?: { readonly skipSpecialTokens?: boolean }): string
  /** The same, and the places in the text at which a token begins for certain; undefined when the tokenizer cannot tell. */
  encodeMarked?(text: string): { readonly ids: Int32Array; readonly marks: TokenMarks } | undefined
  idOf(token: string): number | undefined
  tokenOf(id: number): string | undefined
}

/**
 * Bytes of byte-fallback tokens as text, as the native engine does it: all of them or, when they are not UTF-8, one
 * replacement character for each byte. (@huggingface/tokenizers 0.2.0 decodes leniently and drops U+FEFF.)
 */
const byteRuns = {
  strict: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }),
  decode(bytes: Uint8Array): string {
    try {
      return this.strict.decode(bytes)
    } catch {
      return '\ufffd'.repeat(bytes.length)
    }
  },
}

function correctDecoder(decoder: Decoder | null): void {
  if (decoder instanceof ByteFallbackDecoder) Object.assign(decoder, { text_decoder: byteRuns })
  const parts: unknown = decoder !== null && 'decoders' in decoder ? decoder.decoders : []
  if (Array.isArray(parts)) for (const part of parts) if (part instanceof Decoder) correctDecoder(part)
}

/** Far above any vocabulary; a larger id in a damaged file would fill the memory. */
const idLimit = 1 << 24

/** The largest id of vocabulary and added tokens; −1 when there is no vocabulary. */
function largestId({ folder, definition }: TokenizerFiles): number {
  const vocabulary = isJsonObject(definition.model) ? definition.model.vocab : undefined
  let last = Array.isArray(vocabulary) ? vocabulary.length - 1 : -1
  const consider = (token: string, id: unknown): void => {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= idLimit)
      throw new UnslothError('TOKENIZER', `${join(folder, 'tokenizer.json')}: the token ${quote(token)} has no usable id.`, {
        hint: 'Fetch the file again.',
      })
    last = Math.max(last, id as number)
  }
  if (isJsonObject(vocabulary)) for (const [token, id] of Object.entries(vocabulary)) consider(token, id)
  if (last >= 0) for (const { content, id } of definition.added_tokens) consider(content, id)
  return last
}

const supportedModels = ['BPE', 'Unigram', 'WordPiece']

function construct(files: TokenizerFiles): { hub: HubTokenizer; words?: WordEncoder } {
  const path = join(files.folder, 'tokenizer.json')
  const { model } = files.definition
  if (!isJsonObject(model)) throw new UnslothError('TOKENIZER', `${path}: "model" is missing.`, { hint: 'Fetch the file again.' })
  const given = model.type ?? (Array.isArray(model.merges) ? 'BPE' : undefined)
  const type = typeof given === 'string' ? given : 'none'
  if (!supportedModels.includes(type))
    throw new UnslothError('TOKENIZER', `${path}: the model type ${quote(type)} is not supported.`, {
      hint: `Supported are ${supportedModels.join(', ')}.`,
    })
  if (largestId(files) < 0)
    throw new UnslothError('TOKENIZER', `${path}: "model.vocab" is missing or empty.`, { hint: 'Fetch the file again.' })
  try {
    const absent = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null }
    const make = (parts: Readonly<Record<string, unknown>>): HubTokenizer => {
      const made = new HubTokenizer({ ...absent, ...files.definition, model: { ...model, type, ...parts } }, files.config)
      correctDecoder(made.decoder)
      return made
    }
    if (type !== 'BPE') return { hub: make({}) }
    // Merging is done by the word encoder; the library's own table of merges takes most of the time of loading.
    const hub = Array.isArray(model.merges) ? make({ merges: [] }) : make({})
    const words = WordEncoder.create(hub, { ...files, definition: { ...files.definition, model: { ...model, type } } })
    return words === undefined ? { hub: make({}) } : { hub, words }
  } catch (error) {
    throw new UnslothError('TOKENIZER', `${path}: this tokenizer cannot be used: ${(error as Error).message}.`, {
      hint: 'The file may be damaged: fetch it again, or copy it from the folder of the base model.',
      cause: error,
    })
  }
}

/** Ids before and after a text, found by encoding one with and without them. */
function surroundings(hub: HubTokenizer): { prefix: number[]; suffix: number[] } {
  const bare = hub.encode('a', { add_special_tokens: false }).ids
  const full = hub.encode('a').ids
  const start = full.findIndex((_, index) => bare.every((id, offset) => full[index + offset] === id))
  if (start < 0 || bare.length === 0) return { prefix: [], suffix: [] }
  return { prefix: full.slice(0, start), suffix: full.slice(start + bare.length) }
}

class HfTokenizer implements Tokenizer {
  readonly folder: string
  readonly options: TokenizerOptions
  readonly vocabSize: number
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  readonly bosToken: string | undefined
  readonly eosToken: string | undefined
  readonly padToken: string | undefined
  readonly unkToken: string | undefined
  readonly eosIds: readonly number[]
  readonly specialIds: ReadonlySet<number>
  readonly prefixIds: readonly number[]
  readonly suffixIds: readonly number[]
  readonly addsBos: boolean
  readonly chatTemplates: ReadonlyMap<string, string>
  readonly originalTemplate: string | undefined
  readonly repairs: Tokenizer['repairs']
  readonly files: TokenizerFiles
  private readonly hub: HubTokenizer
  private readonly words: WordEncoder | undefined

  constructor(files: TokenizerFiles, options: TokenizerOptions, repairs: readonly TokenizerRepair[]) {
    this.options = options
    this.files = files
    const { hub, words } = construct(files)
    this.words = words
    const { tokens, definition } = files
    this.hub = hub
    this.folder = files.folder
    this.vocabSize = largestId(files) + 1
    this.bosToken = tokens.bos ?? (files.bosId === undefined ? undefined : hub.id_to_token(files.bosId))
    this.eosToken = tokens.eos ?? files.eosIds.map((id) => hub.id_to_token(id)).find((text) => text !== undefined)
    this.padToken = tokens.pad !== undefined && hub.token_to_id(tokens.pad) !== undefined ? tokens.pad : undefined
    this.unkToken = tokens.unk
    const idOf = (role: string, token: string | undefined): number | undefined => {
      const id = token === undefined ? undefined : hub.token_to_id(token)
      if (token !== undefined && id === undefined)
        throw new UnslothError('TOKENIZER', `${files.folder}: the ${role} token ${quote(token)} is not in the vocabulary.`, {
          hint: 'tokenizer.json and tokenizer_config.json belong to different models: copy both from the same one.',
        })
      return id
    }
    this.bosId = idOf('BOS', this.bosToken)
    this.eosId = idOf('EOS', this.eosToken)
    this.padId = idOf('padding', this.padToken)
    this.eosIds = [...new Set([...(this.eosId === undefined ? [] : [this.eosId]), ...files.eosIds])]
    this.specialIds = new Set(definition.added_tokens.filter(({ special }) => special).map(({ id }) => id))
    const { prefix, suffix } = surroundings(hub)
    this.prefixIds = this.decided(prefix, files.addBos, this.bosId, 'first')
    this.suffixIds = this.decided(suffix, files.addEos, this.eosId, 'last')
    this.addsBos = this.bosId !== undefined && this.prefixIds.includes(this.bosId)
    const source = files.chatTemplates.get('default')
    const verdict = options.fix === false || source === undefined ? undefined : examineTemplate(source, this)
    this.originalTemplate = verdict?.repaired === undefined ? undefined : source
    this.chatTemplates =
      verdict?.repaired === undefined ? files.chatTemplates : new Map([...files.chatTemplates, ['default', verdict.repaired]])
    this.repairs =
      verdict?.repaired === undefined
        ? repairs
        : [
            ...repairs,
            {
              check: 'template',
              found: `the chat template of ${files.folder} ignores add_generation_prompt`,
              changed: `${JSON.stringify(verdict.prompt)} is written before answers`,
            },
          ]
  }

  /** `add_bos_token` and `add_eos_token` win over what the post-processor does. */
  private decided(
    ids: readonly number[],
    wanted: boolean | undefined,
    id: number | undefined,
    place: 'first' | 'last',
  ): readonly number[] {
    if (wanted === undefined || id === undefined || ids.includes(id) === wanted) return ids
    if (!wanted) return ids.filter((other) => other !== id)
    return place === 'first' ? [id, ...ids] : [...ids, id]
  }

  encode(text: string, { addSpecialTokens = false } = {}): Int32Array {
    const ids =
      this.words?.encode(wellFormed(text)) ??
      Int32Array.from(this.hub.encode(wellFormed(text), { add_special_tokens: false }).ids)
    return addSpecialTokens ? Int32Array.from([...this.prefixIds, ...ids, ...this.suffixIds]) : ids
  }

  encodeMarked(text: string): { ids: Int32Array; marks: TokenMarks } | undefined {
    if (this.words === undefined) return undefined
    const marks: TokenMarks = { at: [], tokens: [] }
    return { ids: this.words.encode(wellFormed(text), marks), marks }
  }

  decode(ids: ArrayLike<number>, { skipSpecialTokens = false } = {}): string {
    const shown = Array.from(ids).filter(
      (id) => this.hub.id_to_token(id) !== undefined && !(skipSpecialTokens && this.specialIds.has(id)),
    )
    return shown.length === 0 ? '' : this.hub.decode(shown, { clean_up_tokenization_spaces: false })
  }

  idOf(token: string): number | undefined {
    return this.hub.token_to_id(token)
  }

  tokenOf(id: number): string | undefined {
    return this.hub.id_to_token(id)
  }
}

/** Halves of surrogate pairs that stand alone are no text: they become U+FFFD, as in every UTF-8 encoder. */
const wellFormed = (text: string): string => (/[\ud800-\udfff]/.test(text) ? text.replace(/\p{Cs}/gu, '\ufffd') : text)

/** Ids of a text by these files; undefined when they cannot be used. */
function encodeWith(files: TokenizerFiles, text: string): readonly number[] | undefined {
  try {
    const { hub, words } = construct(files)
    return words === undefined ? hub.encode(text, { add_special_tokens: false }).ids : [...words.encode(text)]
  } catch {
    return undefined
  }
}

/** The tokenizer in a folder of Hub layout: tokenizer.json, and tokenizer_config.json and its companions when they are there. */
export async function loadTokenizer(folder: string, options: TokenizerOptions = {}): Promise<Tokenizer> {
  const read = await readTokenizerFiles(folder, options.modelFolder)
  const chatTemplates =
    options.chatTemplate === undefined ? read.chatTemplates : new Map([...read.chatTemplates, ['default', options.chatTemplate]])
  const given = { ...read, chatTemplates }
  const fixed = options.fix === false ? { files: given, repairs: [] } : await repairTokenizer(given, encodeWith)
  if (options.stopToken === undefined) return new HfTokenizer(fixed.files, options, fixed.repairs)
  const mapped = mapEosToken(fixed.files, options.stopToken)
  return new HfTokenizer(mapped.files, options, [...fixed.repairs, ...mapped.repairs])
}

/** A tokenizer that can produce ids beyond the embedding would read foreign memory; refuse it before anything runs. */
export function checkVocabulary(tokenizer: Tokenizer, embeddingRows: number): void {
  if (tokenizer.vocabSize <= embeddingRows) return
  const last = tokenizer.vocabSize - 1
  throw new UnslothError(
    'TOKENIZER',
    `${join(tokenizer.folder, 'tokenizer.json')}: the token ${quote(tokenizer.tokenOf(last) ?? '')} has the id ${last}, ` +
      `but the embedding of the model has only ${embeddingRows} rows.`,
    { hint: 'Take the tokenizer that belongs to this model, or remove the added tokens that the model does not know.' },
  )
}
