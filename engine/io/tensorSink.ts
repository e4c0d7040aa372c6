import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { writeFileAtomic } from './atomicFile.ts'
import { checkFreeSpace, nodeFileSystem, writeError, type FileSystem } from './fileSystem.ts'
import { quote } from './printable.ts'
import { pythonJson } from './pythonJson.ts'
import { tensorBytes } from './safetensors.ts'
import { SafetensorsWriter, type TensorDeclaration } from './safetensorsWriter.ts'
import { indexFile, weightsFile } from './tensorSource.ts'

/** Data of one tensor: all of it, or pieces in order. */
export type TensorData = Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>

export interface SinkResult {
  /** Paths in order; for a sharded model without the index. */
  readonly files: readonly string[]
  /** Bytes of tensor data. */
  readonly totalBytes: number
}

/** Where tensors go: all are declared when it is opened, then written one by one, in any order. */
export interface TensorSink {
  /** The order in which writing is sequential on disk. */
  readonly order: readonly TensorDeclaration[]
  /** On failure nothing of the output remains, and the sink cannot be used any more. */
  write(name: string, data: TensorData): Promise<void>
  /** Makes the output appear, complete. */
  finish(): Promise<SinkResult>
  /** Removes what was written; harmless after `finish`. */
  abort(): Promise<void>
}

const decimal = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 }
const units: Readonly<Record<string, number>> = { ...decimal, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30, TIB: 2 ** 40 }

/** "5GB", "500 MB", "2GiB" or a number of bytes; decimal units as the Python libraries count them. */
export function parseSize(size: string | number): number {
  const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$/.exec(String(size)) ?? []
  const factor = units[(unit ?? '').toUpperCase() || 'B']
  const bytes = factor === undefined ? NaN : Math.floor(Number(digits) * factor)
  if (!Number.isSafeInteger(bytes) || bytes < 1)
    throw new UnslothError('USAGE', `${quote(String(size))} is not a size.`, {
      hint: 'Write a number and a unit, such as 500MB or 5GB.',
    })
  return bytes
}

/**
 * Splits tensors into shards as huggingface_hub does: in the order given, a shard is closed when the next tensor would exceed
 * the limit; a tensor above the limit gets a shard of its own.
 */
export function planShards<T extends TensorDeclaration>(tensors: readonly T[], maxShardBytes: number): readonly (readonly T[])[] {
  const shards: T[][] = []
  let current: T[] = []
  let size = 0
  for (const tensor of tensors) {
    const bytes = tensorBytes(tensor.dtype, tensor.shape)
    if (bytes > maxShardBytes) {
      shards.push([tensor])
      continue
    }
    if (size + bytes > maxShardBytes) {
      shards.push(current)
      current = []
      size = 0
    }
    current.push(tensor)
    size += bytes
  }
  if (current.length > 0 || shards.length === 0) shards.push(current)
  return shards
}

const shardName = (index: number, count: number): string =>
  count === 1 ? weightsFile : `model-${String(index + 1).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.safetensors`
const ownFile = /^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/

export interface ModelWriterOptions {
  /** Default 5GB. */
  readonly maxShardSize?: string | number
  /** Default { format: 'pt' }, which transformers requires. */
  readonly metadata?: Readonly<Record<string, string>>
  readonly fs?: FileSystem
}

/**
 * Writes a model's weights into an existing folder: `model.safetensors`, or shards with their index. All files appear in
 * `finish`, and weights of an earlier save that they replace are removed then. To replace a model so that a crash leaves the
 * old or the new one, write into the folder that `writeFolderAtomic` gives.
 */
export class ModelWriter implements TensorSink {
  readonly order: readonly TensorDeclaration[]
  private readonly folder: string
  private readonly fs: FileSystem
  private readonly writers: readonly SafetensorsWriter[]
  private readonly places = new Map<string, SafetensorsWriter>()

  private constructor(folder: string, fs: FileSystem, writers: readonly SafetensorsWriter[]) {
    this.folder = folder
    this.fs = fs
    this.writers = writers
    this.order = writers.flatMap((writer) => writer.order)
    for (const writer of writers) for (const { name } of writer.order) this.places.set(name, writer)
  }

  /** Creates the shard files; fails at once when the disk cannot hold the model. */
  static async open(
    folder: string,
    tensors: readonly TensorDeclaration[],
    options: ModelWriterOptions = {},
  ): Promise<ModelWriter> {
    const { fs = nodeFileSystem, metadata } = options
    const shards = planShards(tensors, parseSize(options.maxShardSize ?? '5GB'))
    const needed = tensors.reduce((sum, { dtype, shape }) => sum + tensorBytes(dtype, shape), 0)
    await checkFreeSpace(folder, needed, join(folder, weightsFile), fs)
    const writers: SafetensorsWriter[] = []
    try {
      for (const [index, shard] of shards.entries())
        writers.push(
          await SafetensorsWriter.open(join(folder, shardName(index, shards.length)), shard, {
            fs,
            ...(metadata && { metadata }),
          }),
        )
    } catch (error) {
      for (const writer of writers) await writer.abort()
      throw error
    }
    return new ModelWriter(folder, fs, writers)
  }

  async write(name: string, data: TensorData): Promise<void> {
    const writer = this.places.get(name)
    try {
      if (writer === undefined) throw new UnslothError('INTERNAL', `Tensor ${quote(name)} was not declared for ${this.folder}.`)
      await writer.write(name, data)
    } catch (error) {
      await this.abort()
      throw error
    }
  }

  async finish(): Promise<SinkResult> {
    try {
      for (const writer of this.writers) await writer.seal()
      for (const writer of this.writers) await writer.publish()
    } catch (error) {
      await this.abort()
      throw error
    }
    const files = this.writers.map((writer) => writer.path)
    const totalBytes = this.writers.reduce((sum, writer) => sum + writer.totalBytes, 0)
    const keep = new Set(files.map((file) => basename(file)))
    if (this.writers.length > 1) {
      await writeFileAtomic(join(this.folder, indexFile), this.index(totalBytes), { fs: this.fs })
      keep.add(indexFile)
    }
    await this.removeStale(keep)
    return { files, totalBytes }
  }

  async abort(): Promise<void> {
    for (const writer of this.writers) await writer.abort()
  }

  private index(totalBytes: number): string {
    // Not a plain object: a tensor may have any name, `__proto__` too.
    const map = new Map([...this.places].map(([name, writer]) => [name, basename(writer.path)]))
    return `${pythonJson({ metadata: { total_size: totalBytes }, weight_map: map })}\n`
  }

  /** A loader would prefer an old model.safetensors to the new shards. */
  private async removeStale(keep: ReadonlySet<string>): Promise<void> {
    const names = await readdir(this.folder).catch(() => [] as string[])
    for (const name of names.filter((candidate) => ownFile.test(candidate) && !keep.has(candidate))) {
      const path = join(this.folder, name)
      await this.fs.remove(path).catch(async (error: unknown) => {
        throw await writeError(error, path, this.fs)
      })
    }
  }
}
