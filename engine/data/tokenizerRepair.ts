import { existsSync } from 'node:fs'
import { basename, join } from 'node:path'
import { isJsonObject } from '../io/jsonText.ts'
import { quote } from '../io/printable.ts'
import { fastForm, readSentencePiece } from './sentencePiece.ts'
import type { AddedTokenSpec, SpecialTokens, TokenizerFiles } from './tokenizerFiles.ts'

/** What was wrong with the files of a tokenizer, and what became of it. */
export interface TokenizerRepair {
  readonly check: 'names' | 'vocabulary' | 'slow form' | 'pad' | 'eos'
  readonly found: string
  readonly changed: string
}

export interface RepairedFiles {
  readonly files: TokenizerFiles
  readonly repairs: readonly TokenizerRepair[]
}

/** Tokens that pad well, best first; those ending in … match by their beginning. */
const padCandidates = [
  '<|finetune_right_pad_id|>',
  '<|finetune_right_pad|>',
  '<pad>',
  '[PAD]',
  '<PAD>',
  '<|endoftext|>',
  '<fim_pad>',
  '<｜▁pad▁｜>',
  '[MASK]',
  '<|reserved…',
  '<|placeholder…',
  '<|dummy_…',
  '[control…',
  '|<EXTRA_TOKENS_…',
  '<SPECIAL_…',
  '<unused…',
  '<|EOT|>',
  '<|reject-unknown|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
]
/** Made when nothing else can pad. */
export const newPadToken = '<｜PAD▁TOKEN｜>'

/** Which ids tokens have. */
export interface TokenNames {
  idOf(token: string): number | undefined
  tokenOf(id: number): string | undefined
  readonly eosIds: readonly number[]
}

/**
 * A token to pad with instead of one that is missing, ends texts, or lies beyond the embedding; none that the chat template uses.
 * `configured`: config.json's id.
 */
export function choosePadToken(
  names: TokenNames,
  added: readonly string[],
  { rows, configured, template = '' }: PadChoice,
): string {
  const usable = (token: string | undefined): token is string => {
    const id = token === undefined ? undefined : names.idOf(token)
    return id !== undefined && id < rows && !names.eosIds.includes(id) && !template.includes(token!)
  }
  for (const candidate of padCandidates) {
    const tokens = candidate.endsWith('…') ? added.filter((token) => token.startsWith(candidate.slice(0, -1))) : [candidate]
    const found = tokens.find(usable)
    if (found !== undefined) return found
  }
  const own = configured === undefined ? undefined : names.tokenOf(configured)
  return usable(own) ? own : newPadToken
}

/** What a token must be to pad. */
export interface PadChoice {
  readonly rows: number
  readonly configured?: number | undefined
  readonly template?: string | undefined
}

/** What is wrong with the token that pads; undefined when nothing is. */
export function padProblem(
  pad: { readonly id: number | undefined; readonly token: string | undefined },
  eosId: number | undefined,
  rows: number,
): string | undefined {
  if (pad.id === undefined) return 'there is no padding token'
  if (pad.id === eosId)
    return `the padding token is the EOS token ${quote(pad.token ?? '')}: with masked padding the model would not learn to stop`
  return pad.id >= rows
    ? `the padding token ${quote(pad.token ?? '')} has the id ${pad.id}, beyond the ${rows} rows of the embedding`
    : undefined
}

/** Ids of the vocabulary and of added tokens, both ways. */
class Vocabulary {
  private readonly ids = new Map<string, number>()
  private readonly tokens = new Map<number, string>()

  constructor({ definition }: TokenizerFiles) {
    const vocab = isJsonObject(definition.model) ? definition.model.vocab : undefined
    const entries: [string, number][] = isJsonObject(vocab)
      ? (Object.entries(vocab) as [string, number][])
      : Array.isArray(vocab)
        ? (vocab as unknown[]).map((entry, id): [string, number] => [String(Array.isArray(entry) ? entry[0] : entry), id])
        : []
    for (const [token, id] of [
      ...entries,
      ...definition.added_tokens.map(({ content, id }): [string, number] => [content, id]),
    ]) {
      this.ids.set(token, id)
      this.tokens.set(id, token)
    }
  }

  idOf(token: string): number | undefined {
    return this.ids.get(token)
  }

  tokenOf(id: number): string | undefined {
    return this.tokens.get(id)
  }

  /** One more than the largest id. */
  get size(): number {
    let last = -1
    for (const id of this.tokens.keys()) last = Math.max(last, id)
    return last + 1
  }
}

/** The files with tokens called otherwise, wherever their names stand; ids stay. */
export function renameTokens(files: TokenizerFiles, names: ReadonlyMap<string, string>): TokenizerFiles {
  const renamed = (token: string): string => names.get(token) ?? token
  const deep = (value: unknown): unknown => {
    if (typeof value === 'string') return renamed(value)
    if (Array.isArray(value)) return value.map(deep)
    return isJsonObject(value)
      ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [renamed(key), deep(inner)]))
      : value
  }
  const { definition } = files
  const model = isJsonObject(definition.model) ? definition.model : {}
  const vocab = Array.isArray(model.vocab)
    ? (model.vocab as unknown[]).map((entry) =>
        Array.isArray(entry) ? [renamed(String(entry[0])), ...(entry.slice(1) as unknown[])] : entry,
      )
    : isJsonObject(model.vocab)
      ? Object.fromEntries(Object.entries(model.vocab).map(([token, id]) => [renamed(token), id]))
      : model.vocab
  const decoder = files.config.added_tokens_decoder
  return {
    ...files,
    definition: {
      ...definition,
      model: { ...model, vocab, ...(typeof model.unk_token === 'string' && { unk_token: renamed(model.unk_token) }) },
      added_tokens: definition.added_tokens.map((token) => ({ ...token, content: renamed(token.content) })),
      ...(definition.post_processor !== undefined && { post_processor: deep(definition.post_processor) }),
    },
    config: { ...files.config, ...(isJsonObject(decoder) && { added_tokens_decoder: deep(decoder) }) },
  }
}

const roles = ['bos', 'eos', 'pad', 'unk'] as const

/** Where another token has the id that a role's token should have, it gets that token's name (unsloth's try_fix_tokenizer). */
function repairNames(files: TokenizerFiles): RepairedFiles {
  const vocabulary = new Vocabulary({
    ...files,
    definition: {
      ...files.definition,
      added_tokens: files.definition.added_tokens.filter(({ content }) => !onlyInConfig(files, content)),
    },
  })
  const wanted: Readonly<Record<string, number | undefined>> = { bos: files.bosId, eos: files.eosIds[0], pad: files.padId }
  const names = new Map<string, string>()
  const repairs: TokenizerRepair[] = []
  for (const role of roles) {
    const token = files.tokens[role]
    if (token === undefined || vocabulary.idOf(token) !== undefined || [...names.values()].includes(token)) continue
    const id = decoderId(files, token) ?? wanted[role]
    const other = id === undefined ? undefined : vocabulary.tokenOf(id)
    if (id === undefined || other === undefined || names.has(other)) continue
    names.set(other, token)
    repairs.push({
      check: 'names',
      found: `the ${role} token ${quote(token)} is not in the vocabulary, and its id ${id} is called ${quote(other)}`,
      changed: `${quote(other)} is called ${quote(token)}`,
    })
  }
  if (names.size === 0) return { files, repairs }
  const added = files.definition.added_tokens.filter(({ content }) => ![...names.values()].includes(content))
  return { files: renameTokens({ ...files, definition: { ...files.definition, added_tokens: added } }, names), repairs }
}

/** The id under which tokenizer_config.json lists a token. */
function decoderId({ config }: TokenizerFiles, token: string): number | undefined {
  const decoder = isJsonObject(config.added_tokens_decoder) ? config.added_tokens_decoder : {}
  const entry = Object.entries(decoder).find(([, value]) => isJsonObject(value) && value.content === token)
  return entry === undefined ? undefined : Number(entry[0])
}

/** Whether a token was taken from tokenizer_config.json although its id belongs to another one. */
const onlyInConfig = ({ definition }: TokenizerFiles, content: string): boolean => {
  const own = definition.added_tokens.find((token) => token.content === content)!
  const first = definition.added_tokens.find(({ id }) => id === own.id)
  const vocab = isJsonObject(definition.model) && isJsonObject(definition.model.vocab) ? definition.model.vocab : {}
  return first !== own || (!Object.hasOwn(vocab, content) && Object.values(vocab).includes(own.id))
}

/** Added tokens beyond the embedding that no role needs are left out (unsloth's check_tokenizer). CodeLlama's are meant so. */
function repairBeyond(files: TokenizerFiles): RepairedFiles {
  const { rows, definition, tokens, folder } = files
  if (rows === undefined || /codellama/i.test(folder)) return { files, repairs: [] }
  const needed = new Set<string>(roles.flatMap((role) => tokens[role] ?? []))
  const vocab = isJsonObject(definition.model) && isJsonObject(definition.model.vocab) ? definition.model.vocab : {}
  const isBad = ({ id, content }: AddedTokenSpec): boolean => id >= rows && !needed.has(content) && !Object.hasOwn(vocab, content)
  const bad = definition.added_tokens.filter(isBad)
  if (bad.length === 0) return { files, repairs: [] }
  const shown = bad
    .slice(0, 4)
    .map(({ content }) => quote(content))
    .join(', ')
  return {
    files: { ...files, definition: { ...definition, added_tokens: definition.added_tokens.filter((token) => !isBad(token)) } },
    repairs: [
      {
        check: 'vocabulary',
        found:
          `${bad.length} added tokens have ids beyond the ${rows} rows of the embedding: ` +
          shown +
          (bad.length > 4 ? ', …' : ''),
        changed: 'they are left out',
      },
    ],
  }
}

function repairPad(files: TokenizerFiles): RepairedFiles {
  const { rows = Infinity, tokens, definition } = files
  const vocabulary = new Vocabulary(files)
  const eosId = tokens.eos === undefined ? files.eosIds[0] : vocabulary.idOf(tokens.eos)
  const id = tokens.pad === undefined ? undefined : vocabulary.idOf(tokens.pad)
  const found = padProblem({ id, token: tokens.pad }, eosId, rows)
  if (found === undefined) return { files, repairs: [] }
  const names: TokenNames = {
    idOf: (token) => vocabulary.idOf(token),
    tokenOf: (other) => vocabulary.tokenOf(other),
    eosIds: [...files.eosIds, ...(eosId === undefined ? [] : [eosId])],
  }
  const added = definition.added_tokens
    .filter(({ special }) => special)
    .sort((a, b) => a.id - b.id)
    .map(({ content }) => content)
  const pad = choosePadToken(names, added, { rows, configured: files.padId, template: files.chatTemplates.get('default') })
  const known = vocabulary.idOf(pad)
  // A new token needs a row of its own, which only an embedding with room to spare has.
  const next = vocabulary.size
  if (known === undefined && !(next < rows && rows < Infinity)) return { files, repairs: [] }
  const made: AddedTokenSpec = {
    id: next,
    content: pad,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }
  return {
    files: {
      ...files,
      tokens: { ...tokens, pad },
      ...(known === undefined && { definition: { ...definition, added_tokens: [...definition.added_tokens, made] } }),
    },
    repairs: [
      {
        check: 'pad',
        found,
        changed: known === undefined ? `${quote(pad)} (${next}) is added` : `${quote(pad)} (${known}) is taken`,
      },
    ],
  }
}

/** These differ from their SentencePiece models and are right as they are. */
const rightAsTheyAre = /mistral|qwen2\.5-coder-(?:1\.5|7)b-instruct/i

/** Texts on which the two forms of a tokenizer are compared: what unsloth's assert_same_tokenization takes. */
const comparison = (special: readonly string[]): string =>
  `${special.join('\n')}A quick brown fox jumps over the lazy dog!!\n\nHi</s>\n\n${special.join('')}`

/** Encodes with these files, or undefined when they cannot be used. */
export type Encode = (files: TokenizerFiles, text: string) => readonly number[] | undefined

/**
 * Compares tokenizer.json with the SentencePiece model beside it. Where they cut text differently, the fast form without its
 * `Prepend` is tried, and then the SentencePiece model is taken.
 */
async function repairSlowForm(files: TokenizerFiles, encode: Encode): Promise<RepairedFiles> {
  const path = join(files.folder, 'tokenizer.model')
  if (files.converted || rightAsTheyAre.test(files.folder) || !existsSync(path)) return { files, repairs: [] }
  const slow = await readSentencePiece(path).then(fastForm, () => undefined)
  if (slow === undefined) return { files, repairs: [] }
  const known = new Set(slow.added_tokens.map(({ content }) => content))
  const more = files.definition.added_tokens.filter(
    ({ content, id }) => !known.has(content) && id >= Object.keys((slow.model as { vocab: object }).vocab).length,
  )
  const legacy: TokenizerFiles = {
    ...files,
    definition: {
      ...slow,
      added_tokens: [...slow.added_tokens, ...more],
      post_processor: files.definition.post_processor ?? null,
    },
  }
  const text = comparison(files.definition.added_tokens.filter(({ special }) => special).map(({ content }) => content))
  const expected = encode(legacy, text)?.join()
  const same = (other: TokenizerFiles): boolean => encode(other, text)?.join() === expected
  if (expected === undefined || same(files)) return { files, repairs: [] }
  const found = `tokenizer.json and tokenizer.model of ${basename(files.folder)} cut text differently`
  const bare = withoutPrepend(files)
  if (bare !== undefined && same(bare))
    return {
      files: bare,
      repairs: [{ check: 'slow form', found, changed: 'the space that tokenizer.json puts before every text is left out' }],
    }
  return { files: legacy, repairs: [{ check: 'slow form', found, changed: 'tokenizer.model is taken' }] }
}

/** The files without the normaliser that puts `▁` before every text; undefined when there is none. */
function withoutPrepend(files: TokenizerFiles): TokenizerFiles | undefined {
  const { normalizer } = files.definition
  if (!isJsonObject(normalizer) || !Array.isArray(normalizer.normalizers)) return undefined
  const rest = (normalizer.normalizers as unknown[]).filter((part) => !(isJsonObject(part) && part.type === 'Prepend'))
  if (rest.length === normalizer.normalizers.length) return undefined
  return { ...files, definition: { ...files.definition, normalizer: { ...normalizer, normalizers: rest } } }
}

/** All of it, in the order in which one repair needs another. */
export async function repairTokenizer(given: TokenizerFiles, encode: Encode): Promise<RepairedFiles> {
  const repairs: TokenizerRepair[] = []
  const apply = (result: RepairedFiles): TokenizerFiles => {
    repairs.push(...result.repairs)
    return result.files
  }
  const named = apply(repairNames(given))
  const same = apply(await repairSlowForm(named, encode))
  return { files: apply(repairPad(apply(repairBeyond(same)))), repairs }
}

/**
 * Makes `stop`, with which a chat template ends turns, the EOS token: the old one gets its name, and gives its own to the token
 * that had it, so that no row is added and the trained row ends turns (unsloth's map_eos_token).
 */
export function mapEosToken(files: TokenizerFiles, stop: string): RepairedFiles {
  const { tokens } = files
  const old = tokens.eos ?? (files.eosIds[0] === undefined ? undefined : new Vocabulary(files).tokenOf(files.eosIds[0]))
  if (old === undefined || old === stop) return { files, repairs: [] }
  const there = new Vocabulary(files).idOf(stop) !== undefined
  const renamed = renameTokens(files, new Map([[old, stop], ...(there ? [[stop, old] as const] : [])]))
  // Tokens of other roles that were called so keep their row, not their name; what pads must not end texts.
  const mapped = (token: string | undefined): string | undefined => (token === old ? stop : token)
  const [bos, unk] = [mapped(tokens.bos), mapped(tokens.unk)]
  const pad = there || tokens.pad !== old ? tokens.pad : undefined
  const kept: SpecialTokens = {
    eos: stop,
    ...(bos !== undefined && { bos }),
    ...(unk !== undefined && { unk }),
    ...(pad !== undefined && { pad }),
  }
  return {
    files: { ...renamed, tokens: kept },
    repairs: [
      {
        check: 'eos',
        found: `the chat template ends turns with ${quote(stop)}, texts end with ${quote(old)}`,
        changed:
          `${quote(stop)} is the EOS token` +
          (there ? `, and its name is swapped with that of ${quote(old)}` : ` in the place of ${quote(old)}`),
      },
    ],
  }
}
