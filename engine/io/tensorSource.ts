import { open, readFile, readdir, stat } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatBytes, formatCount } from '#shared/units.ts'
import { readError } from './fileSystem.ts'
import { decodeUtf8, isJsonObject, parseJson } from './jsonText.ts'
import { quote } from './printable.ts'
import { readAt, readSafetensorsHeader, type SafetensorsDtype, type SafetensorsHeader } from './safetensors.ts'
import { decodeElements } from './tensorConvert.ts'

/** Where the data of one tensor lies. */
export interface TensorLocation {
  readonly name: string
  readonly path: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  /** Absolute byte offset in the file. */
  readonly offset: number
  readonly bytes: number
}

/** All tensors of a model, whatever files they are spread over. Descriptions only: no data is held. */
export interface TensorSource {
  /** The file or folder that was opened. */
  readonly path: string
  /** In file order. */
  readonly tensors: ReadonlyMap<string, TensorLocation>
  readonly metadata: ReadonlyMap<string, string>
  readonly files: readonly string[]
  readonly totalBytes: number
  /** Oddities that do no harm, one sentence each. */
  readonly warnings: readonly string[]
}

export const weightsFile = 'model.safetensors'
export const indexFile = 'model.safetensors.index.json'
const fetchAgain = 'The download is not complete: fetch the model again.'

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  )
}

function locate(header: SafetensorsHeader, path: string): TensorLocation[] {
  return header.tensors.map(({ name, dtype, shape, begin, end }) => ({
    name,
    path,
    dtype,
    shape,
    offset: begin,
    bytes: end - begin,
  }))
}

async function openFile(path: string): Promise<TensorSource> {
  const header = await readSafetensorsHeader(path)
  const tensors = new Map(locate(header, path).map((tensor) => [tensor.name, tensor]))
  return {
    path,
    tensors,
    metadata: header.metadata,
    files: [path],
    totalBytes: header.fileBytes - header.dataBegin,
    warnings: [],
  }
}

interface ShardIndex {
  /** File name → names of its tensors. */
  readonly shards: ReadonlyMap<string, readonly string[]>
  readonly totalSize: number | undefined
}

/** A shard must lie in the model's own folder, whatever a downloaded index says. */
const isInside = (file: string): boolean =>
  file !== '' &&
  !isAbsolute(file) &&
  !/[\\:\0]/.test(file) &&
  !file.split('/').some((part) => part === '..' || part === '.' || part === '')

async function readIndex(path: string): Promise<ShardIndex> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw readError(error, path, 'shard index')
  })
  const text = decodeUtf8(bytes)
  if (text === undefined) throw new UnslothError('FILE_FORMAT', `${path}: not UTF-8 text.`, { hint: fetchAgain })
  const json = parseJson(text, { file: path })
  const map = isJsonObject(json) && Object.hasOwn(json, 'weight_map') ? json.weight_map : undefined
  if (!isJsonObject(map))
    throw new UnslothError('FILE_FORMAT', `${path}: has no "weight_map" object.`, { hint: 'Fetch the index file again.' })
  const shards = new Map<string, string[]>()
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== 'string' || !isInside(file)) {
      const place = `${quote(String(JSON.stringify(file)))}, which is not a file of this folder`
      throw new UnslothError('FILE_FORMAT', `${path}: "weight_map" puts tensor ${quote(tensor)} in ${place}.`, {
        hint: 'Fetch the index file again from a source you trust.',
      })
    }
    const names = shards.get(file)
    if (names === undefined) shards.set(file, [tensor])
    else names.push(tensor)
  }
  const metadata = isJsonObject(json) ? json.metadata : undefined
  const total = isJsonObject(metadata) ? metadata.total_size : undefined
  return { shards, totalSize: typeof total === 'number' ? total : undefined }
}

async function openShards(index: string): Promise<TensorSource> {
  const folder = dirname(index)
  const { shards, totalSize } = await readIndex(index)
  const missing: string[] = []
  for (const file of shards.keys()) if (!(await exists(join(folder, file)))) missing.push(file)
  if (missing.length > 0) {
    const named = `${missing
      .slice(0, 5)
      .map((file) => quote(file))
      .join(', ')}${missing.length > 5 ? ', …' : ''}`
    throw new UnslothError(
      'FILE_NOT_FOUND',
      `${folder}: ${missing.length} of ${shards.size} weight files are missing: ${named}.`,
      { hint: fetchAgain },
    )
  }
  const tensors = new Map<string, TensorLocation>()
  const files: string[] = []
  const warnings: string[] = []
  let metadata: ReadonlyMap<string, string> = new Map()
  let totalBytes = 0
  for (const file of [...shards.keys()].sort()) {
    const path = join(folder, file)
    const header = await readSafetensorsHeader(path)
    const wanted = new Set(shards.get(file))
    for (const tensor of locate(header, path)) {
      if (!wanted.delete(tensor.name)) {
        warnings.push(`${path}: tensor ${quote(tensor.name)} is not in ${basename(index)} and is not used.`)
        continue
      }
      tensors.set(tensor.name, tensor)
      totalBytes += tensor.bytes
    }
    const [absent] = wanted
    if (absent !== undefined) {
      const more = wanted.size > 1 ? ` (and ${wanted.size - 1} more)` : ''
      const claim = `although ${basename(index)} says so${more}`
      throw new UnslothError('FILE_FORMAT', `${path}: tensor ${quote(absent)} is not in this file, ${claim}.`, {
        hint: 'Index and weight files belong to different versions of the model: fetch all of them again.',
      })
    }
    if (files.length === 0) metadata = header.metadata
    files.push(path)
  }
  if (totalSize !== undefined && totalSize !== totalBytes)
    warnings.push(`${index}: "total_size" is ${formatCount(totalSize)} bytes, the tensors have ${formatCount(totalBytes)}.`)
  return { path: folder, tensors, metadata, files, totalBytes, warnings }
}

/** Says what a folder without usable weights has instead. */
async function noWeights(folder: string): Promise<UnslothError> {
  const names = await readdir(folder)
  const has = (pattern: RegExp): boolean => names.some((name) => pattern.test(name))
  const hint = has(/^adapter_model\.safetensors$/)
    ? 'It holds a LoRA adapter: open it as an adapter, or give the folder of its base model.'
    : has(/\.gguf$/)
      ? 'It holds GGUF files: training needs the original safetensors model.'
      : has(/^pytorch_model.*\.bin|\.pth?$/)
        ? 'It holds PyTorch checkpoints: convert the model to safetensors, or fetch its safetensors version.'
        : 'Give a folder in the layout of the Hugging Face Hub.'
  return new UnslothError('FILE_NOT_FOUND', `${folder}: neither ${weightsFile} nor ${indexFile} is there.`, { hint })
}

/** Opens a .safetensors file, a shard index, or a folder that has either; reads headers only. */
export async function openTensorSource(path: string): Promise<TensorSource> {
  const info = await stat(path).catch((error: unknown) => {
    throw readError(error, path, 'model')
  })
  if (!info.isDirectory()) return path.endsWith('.index.json') ? openShards(path) : openFile(path)
  if (await exists(join(path, weightsFile))) return { ...(await openFile(join(path, weightsFile))), path }
  if (await exists(join(path, indexFile))) return openShards(join(path, indexFile))
  throw await noWeights(path)
}

/** The tensor of that name; a MODEL_INVALID error when there is none. */
export function requireTensor(source: TensorSource, name: string): TensorLocation {
  const tensor = source.tensors.get(name)
  if (tensor !== undefined) return tensor
  throw new UnslothError('MODEL_INVALID', `${source.path}: tensor ${quote(name)} is missing.`, {
    hint: `The file has ${source.tensors.size} tensors; \`unsloth inspect\` lists them.`,
  })
}

/** Whole tensors in memory are for small ones; the addon reads the others straight from the file. */
const maxReadBytes = 2 ** 31

/** The bytes of a tensor. */
export async function readTensorBytes(tensor: TensorLocation): Promise<Uint8Array> {
  if (tensor.bytes > maxReadBytes)
    throw new UnslothError(
      'MEMORY',
      `${tensor.path}: tensor ${quote(tensor.name)} of ${formatBytes(tensor.bytes)} is too large to be read at once.`,
    )
  const chunks: Uint8Array[] = []
  for await (const chunk of streamTensor(tensor, Math.max(1, tensor.bytes))) chunks.push(chunk)
  return chunks[0] ?? new Uint8Array(0)
}

/** The bytes of a tensor in order, `chunkBytes` at a time. Each chunk is new memory. */
export async function* streamTensor(tensor: TensorLocation, chunkBytes = 4 << 20): AsyncGenerator<Uint8Array> {
  const handle = await open(tensor.path, 'r').catch((error: unknown) => {
    throw readError(error, tensor.path, 'weight file')
  })
  try {
    for (let done = 0; done < tensor.bytes;) {
      const want = Math.min(chunkBytes, tensor.bytes - done)
      const chunk = await readAt(handle, tensor.offset + done, want)
      if (chunk.length < want)
        throw new UnslothError('FILE_FORMAT', `${tensor.path}: the file ends inside tensor ${quote(tensor.name)}.`, {
          hint: fetchAgain,
        })
      yield chunk
      done += want
    }
  } catch (error) {
    throw readError(error, tensor.path, 'weight file')
  } finally {
    await handle.close()
  }
}

const label = (tensor: TensorLocation): string => `${tensor.path}: tensor ${quote(tensor.name)}`
const decode = async (tensor: TensorLocation): Promise<ArrayLike<number | bigint>> =>
  decodeElements(tensor.dtype, await readTensorBytes(tensor), label(tensor))

/** A tensor's elements as float32 (F64 and integers are rounded). */
export async function readFloat32(tensor: TensorLocation): Promise<Float32Array> {
  const values = await decode(tensor)
  return values instanceof Float32Array ? values : Float32Array.from(values as ArrayLike<number>, Number)
}

/** A tensor's elements as float64, exact for every float type. */
export async function readFloat64(tensor: TensorLocation): Promise<Float64Array> {
  const values = await decode(tensor)
  return values instanceof Float64Array ? values : Float64Array.from(values as ArrayLike<number>, Number)
}

/** A tensor's elements as 32-bit integers, such as token ids; a value that is none is a FILE_FORMAT error. */
export async function readInt32(tensor: TensorLocation): Promise<Int32Array> {
  const values = await decode(tensor)
  const result = new Int32Array(values.length)
  for (let i = 0; i < values.length; i++) {
    result[i] = Number(values[i])
    if (result[i] !== Number(values[i]))
      throw new UnslothError('FILE_FORMAT', `${label(tensor)}: element ${i} (${values[i]}) is not a 32-bit integer.`, {
        hint: 'The file does not hold what is expected here.',
      })
  }
  return result
}
