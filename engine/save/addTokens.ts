import { createReadStream, existsSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { tokenMatrices, untrainedBelow, type RowMatrix } from '../data/embeddingRows.ts'
import { loadTokenizer, type Tokenizer } from '../data/tokenizer.ts'
import { writeFileAtomic, writeFolderAtomic } from '../io/atomicFile.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { readJsonObject } from '../io/modelFolder.ts'
import { quote } from '../io/printable.ts'
import { pythonJson } from '../io/pythonJson.ts'
import { writeTensors, type NamedTensor } from '../io/safetensorsWriter.ts'
import { encodeFloats, type FloatDtype } from '../io/tensorConvert.ts'
import { ModelWriter } from '../io/tensorSink.ts'
import { openTensorSource, type TensorLocation } from '../io/tensorSource.ts'
import { writeTokenizer } from './writeTokenizer.ts'

export interface NewTokens {
  readonly tokens: readonly string[]
  /** `mean` (default): of the trained rows; `interpolation`: between that and the mean of the pieces that the token had so far. */
  readonly method?: 'mean' | 'interpolation'
  /** 0 is the mean alone, 1 the pieces alone. Default 0.5. */
  readonly interpolation?: number
  /** Rows of the matrices are made a multiple of this. */
  readonly multipleOf?: number
  readonly maxShardSize?: string
}

/** What a model became. */
export interface ResizedModel {
  /** The tokens that are new, with their ids. */
  readonly added: readonly { readonly token: string; readonly id: number }[]
  /** Rows of embedding and output matrix, before and after: a matrix with room to spare is never made smaller. */
  readonly rowsBefore: number
  readonly rows: number
  /** Matrices that have the new rows. */
  readonly matrices: readonly string[]
}

/** Rows read at once. */
const chunk = 4096

/** The mean of the rows that were trained. */
async function meanOfTrained(matrix: RowMatrix): Promise<Float64Array> {
  const sum = new Float64Array(matrix.cols)
  let trained = 0
  for (let from = 0; from < matrix.rows; from += chunk) {
    await matrix.each(
      Array.from({ length: Math.min(chunk, matrix.rows - from) }, (_, index) => from + index),
      (row) => {
        if (row.every((value) => Math.abs(value) <= untrainedBelow)) return
        trained++
        for (let col = 0; col < row.length; col++) sum[col]! += row[col]!
      },
    )
  }
  return sum.map((value) => value / Math.max(1, trained))
}

async function meanOf(matrix: RowMatrix, ids: readonly number[]): Promise<Float64Array> {
  const rows = await matrix.each(ids, (row) => row.slice())
  const sum = new Float64Array(matrix.cols)
  // A piece that comes twice counts twice.
  for (const id of ids) rows.get(id)?.forEach((value, col) => (sum[col]! += value))
  return sum.map((value) => value / Math.max(1, ids.length))
}

/** Values of the new rows of a matrix, one for each token. */
async function newRows(
  matrix: RowMatrix,
  pieces: readonly (readonly number[])[],
  { method = 'mean', interpolation = 0.5 }: NewTokens,
): Promise<Float64Array[]> {
  const mean = await meanOfTrained(matrix)
  if (method === 'mean') return pieces.map(() => mean)
  return Promise.all(
    pieces.map(async (ids) => {
      const own = await meanOf(matrix, ids)
      return mean.map((value, col) => (1 - interpolation) * value + interpolation * own[col]!)
    }),
  )
}

async function* bytesOf({ path, offset, bytes }: TensorLocation, to = bytes): AsyncGenerator<Uint8Array> {
  if (to > 0)
    yield* createReadStream(path, { start: offset, end: offset + to - 1, highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>
}

/** The stored rows up to `from`, the new ones, the stored ones behind them, and rows of zeros to the end. */
async function* resizedBytes(
  tensor: TensorLocation,
  rows: number,
  from: number,
  added: readonly Float64Array[],
): AsyncGenerator<Uint8Array> {
  const [before, cols] = tensor.shape as [number, number]
  const rowBytes = tensor.bytes / before
  yield* bytesOf(tensor, from * rowBytes)
  for (const row of added) yield encodeFloats(tensor.dtype as FloatDtype, row)
  const next = from + added.length
  if (next < before) yield* bytesOf({ ...tensor, offset: tensor.offset + next * rowBytes, bytes: (before - next) * rowBytes })
  const zeros = encodeFloats(tensor.dtype as FloatDtype, new Float64Array(cols))
  for (let row = Math.max(next, before); row < rows; row++) yield zeros
}

function checkTokens(tokenizer: Tokenizer, { tokens, interpolation = 0.5 }: NewTokens): string[] {
  const wanted = [...new Set(tokens)]
  const empty = wanted.find((token) => token.trim() === '')
  if (empty !== undefined)
    throw new UnslothError('USAGE', `${JSON.stringify(empty)} is no token: it is empty.`, {
      hint: 'Give the texts of the tokens, such as <think>.',
    })
  if (!(interpolation >= 0 && interpolation <= 1))
    throw new UnslothError('USAGE', `An interpolation of ${interpolation} is not between 0 and 1.`)
  const fresh = wanted.filter((token) => tokenizer.idOf(token) === undefined)
  if (fresh.length === 0)
    throw new UnslothError(
      'USAGE',
      (wanted.length === 0
        ? 'No token is given'
        : `The tokenizer has ${wanted.map((token) => quote(token)).join(', ')} already`) + '; there is nothing to add.',
    )
  return fresh
}

/**
 * Writes a model with more tokens beside the given one: its tokenizer knows them, and embedding and output matrix have rows for
 * them (unsloth's add_new_tokens and transformers' resize_token_embeddings). A tied model stays tied. The folder appears whole or
 * not at all.
 */
export async function addTokens(folder: string, target: string, request: NewTokens): Promise<ResizedModel> {
  const tokenizer = await loadTokenizer(folder)
  const fresh = checkTokens(tokenizer, request)
  if (existsSync(target)) throw new UnslothError('FILE_WRITE', `${target} is there already.`, { hint: 'Name a new folder.' })
  const { embedding, head } = await tokenMatrices(folder)
  if (embedding === undefined)
    throw new UnslothError('MODEL_INVALID', `${folder}: no embedding matrix in 16 or 32 bits was found.`, {
      hint: 'Take the model in 16 bits.',
    })
  const first = tokenizer.vocabSize
  const { multipleOf = 1 } = request
  const rows = Math.ceil(Math.max(embedding.rows, first + fresh.length) / multipleOf) * multipleOf
  const pieces = fresh.map((token) => [...tokenizer.encode(token)])
  const matrices = [embedding, ...(head === undefined ? [] : [head])]
  const made = new Map<string, Float64Array[]>()
  for (const matrix of matrices) made.set(matrix.name, await newRows(matrix, pieces, request))
  await writeFolderAtomic(target, async (draft) => {
    const source = await openTensorSource(folder)
    const tensors: NamedTensor[] = [...source.tensors.values()].map((tensor) => {
      const added = made.get(tensor.name)
      return {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: added === undefined ? tensor.shape : [rows, tensor.shape[1]!],
        data: () => (added === undefined ? bytesOf(tensor) : resizedBytes(tensor, rows, first, added)),
      }
    })
    await writeTensors(await ModelWriter.open(draft, tensors, { maxShardSize: request.maxShardSize ?? '5GB' }), tensors)
    await writeConfig(folder, draft, rows)
    await writeTokenizer(tokenizer, draft)
    await writeNewTokens(draft, fresh, first)
  })
  return {
    added: fresh.map((token, index) => ({ token, id: first + index })),
    rowsBefore: embedding.rows,
    rows,
    matrices: matrices.map(({ name }) => name),
  }
}

async function writeConfig(from: string, to: string, rows: number): Promise<void> {
  const config = await readJsonObject(join(from, 'config.json'), { keepNumbers: true })
  const text = isJsonObject(config.text_config)
    ? { text_config: { ...config.text_config, vocab_size: rows } }
    : { vocab_size: rows }
  await writeFileAtomic(join(to, 'config.json'), `${pythonJson({ ...config, ...text })}\n`)
  if (existsSync(join(from, 'generation_config.json')))
    await copyFile(join(from, 'generation_config.json'), join(to, 'generation_config.json'))
}

/** Adds the tokens to the files of the tokenizer. */
async function writeNewTokens(folder: string, tokens: readonly string[], first: number): Promise<void> {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: false }
  const path = join(folder, 'tokenizer.json')
  const definition = await readJsonObject(path)
  const added = [
    ...(definition.added_tokens as unknown[]),
    ...tokens.map((content, index) => ({ id: first + index, content, ...flags })),
  ]
  await writeFileAtomic(path, JSON.stringify({ ...definition, added_tokens: added }, null, 2))
  const configPath = join(folder, 'tokenizer_config.json')
  if (!existsSync(configPath)) return
  const config = await readJsonObject(configPath, { keepNumbers: true })
  if (!isJsonObject(config.added_tokens_decoder)) return
  const more = Object.fromEntries(tokens.map((content, index) => [String(first + index), { content, ...flags }]))
  await writeFileAtomic(
    configPath,
    `${pythonJson({ ...config, added_tokens_decoder: { ...config.added_tokens_decoder, ...more } })}\n`,
  )
}
