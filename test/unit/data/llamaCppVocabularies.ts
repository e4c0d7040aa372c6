import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fastForm } from '../../../engine/data/sentencePiece.ts'

/** Kinds of tokenizers that real models have, by the vocabularies of llama.cpp's own tests. */
export const vocabularies = ['gpt-2', 'llama-bpe', 'phi-3', 'starcoder', 'falcon', 'gemma-4'] as const
export type VocabularyName = (typeof vocabularies)[number]

/** Metadata of a GGUF file, version 3 (ggml/docs/gguf.md). */
function ggufMetadata(bytes: Buffer): Map<string, unknown> {
  let at = 8
  const step = <T>(size: number, read: (at: number) => T): T => {
    const value = read(at)
    at += size
    return value
  }
  const u32 = (): number => step(4, (place) => bytes.readUInt32LE(place))
  const u64 = (): number => Number(step(8, (place) => bytes.readBigUInt64LE(place)))
  const text = (): string => {
    const length = u64()
    return step(length, (place) => bytes.toString('utf8', place, place + length))
  }
  const readers: Readonly<Record<number, () => unknown>> = {
    0: () => step(1, (place) => bytes[place]),
    1: () => step(1, (place) => bytes.readInt8(place)),
    4: u32,
    5: () => step(4, (place) => bytes.readInt32LE(place)),
    6: () => step(4, (place) => bytes.readFloatLE(place)),
    7: () => step(1, (place) => bytes[place] === 1),
    8: text,
    10: u64,
    9: () => {
      const [type, count] = [u32(), u64()]
      return Array.from({ length: count }, () => readers[type]!())
    },
  }
  u64()
  const entries = u64()
  return new Map(
    Array.from({ length: entries }, () => {
      const key = text()
      return [key, readers[u32()]!()] as const
    }),
  )
}

const split = (pattern: string): object => ({ type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false })
const byteLevel = (usesPattern: boolean): object => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: usesPattern,
})
const digits = (individual: boolean): object => ({ type: 'Digits', individual_digits: individual })

/** How the models cut text into words before merging, as their tokenizer.json files say. */
const preTokenizers: Readonly<Record<string, object>> = {
  'gpt-2': byteLevel(true),
  'llama-bpe': {
    type: 'Sequence',
    pretokenizers: [
      split(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
      ),
      byteLevel(false),
    ],
  },
  starcoder: { type: 'Sequence', pretokenizers: [digits(true), byteLevel(true)] },
  falcon: {
    type: 'Sequence',
    pretokenizers: [{ type: 'Punctuation', behavior: 'Contiguous' }, byteLevel(true), digits(false), split('[0-9][0-9][0-9]')],
  },
}

const kinds = { control: 3, userDefined: 4 } as const
const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false }

/** A tokenizer.json with the vocabulary of a GGUF file. */
function definitionOf(name: VocabularyName, metadata: ReadonlyMap<string, unknown>): Record<string, unknown> {
  const tokens = metadata.get('tokenizer.ggml.tokens') as string[]
  const types = metadata.get('tokenizer.ggml.token_type') as number[]
  const merges = metadata.get('tokenizer.ggml.merges') as string[] | undefined
  const special = (id: number): boolean => types[id] === kinds.control
  const added = tokens.flatMap((content, id) =>
    special(id) || types[id] === kinds.userDefined ? [{ id, content, ...flags, special: special(id) }] : [],
  )
  if (name === 'phi-3') {
    const scores = metadata.get('tokenizer.ggml.scores') as number[]
    const pieces = tokens.map((text, id) => ({ text, score: scores[id]!, kind: types[id]! }))
    const made = fastForm({ pieces, type: 'bpe', byteFallback: true, dummyPrefix: true, normalises: false })!
    // Phi-3 strips what follows its markers of turns.
    return { ...made, added_tokens: made.added_tokens.map((token) => ({ ...token, rstrip: token.id >= 32000 })) }
  }
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]))
  const model = {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: name === 'llama-bpe',
    vocab,
    merges,
  }
  const common = { version: '1.0', truncation: null, padding: null, added_tokens: added, post_processor: null }
  if (name !== 'gemma-4')
    return { ...common, normalizer: null, pre_tokenizer: preTokenizers[name], decoder: byteLevel(true), model }
  return {
    ...common,
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
    pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
    decoder: {
      type: 'Sequence',
      decoders: [{ type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }],
    },
    model: { ...model, byte_fallback: true, fuse_unk: true, unk_token: '<unk>' },
  }
}

export interface Vocabulary {
  /** Holds tokenizer.json. */
  readonly folder: string
  /** Texts of llama.cpp's tests and the ids that it gives them. */
  readonly tests: readonly { readonly text: string; readonly ids: readonly number[] }[]
}

/** Unpacks vocabularies from the package that holds llama.cpp's sources. `remove` takes them away again. */
export function unpackVocabularies(): { readonly of: (name: VocabularyName) => Vocabulary; readonly remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-vocabularies-'))
  const archive = join('node_modules', '@milk2025', 'llama-cpp-source', 'llama.cpp-b9888.tar.gz')
  const paths = vocabularies.flatMap((name) =>
    ['', '.inp', '.out'].map((end) => `llama.cpp-b9888/models/ggml-vocab-${name}.gguf${end}`),
  )
  execFileSync('tar', ['xzf', archive, '-C', folder, '--strip-components=2', ...paths])
  return {
    of: (name) => {
      const own = mkdtempSync(join(folder, `${name}-`))
      const file = join(folder, `ggml-vocab-${name}.gguf`)
      writeFileSync(join(own, 'tokenizer.json'), JSON.stringify(definitionOf(name, ggufMetadata(readFileSync(file)))))
      const texts = readFileSync(`${file}.inp`, 'utf8').split('\n__ggml_vocab_test__\n')
      const lines = readFileSync(`${file}.out`, 'utf8').split('\n')
      return {
        folder: own,
        tests: texts.map((text, index) => ({
          text,
          ids: lines[index]!.split(' ')
            .filter((id) => id !== '')
            .map(Number),
        })),
      }
    },
    remove: () => rmSync(folder, { recursive: true, force: true }),
  }
}
