import { dirname } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { releaseTemporary, temporaryBeside } from './atomicFile.ts'
import { checkFreeSpace, nodeFileSystem, writeError, type FileSystem, type OutputFile } from './fileSystem.ts'
import { quote } from './printable.ts'
import { compareCodePoints } from './pythonJson.ts'
import { dtypeRank, maxHeaderBytes, tensorBytes, type SafetensorsDtype } from './safetensors.ts'
import type { SinkResult, TensorData, TensorSink } from './tensorSink.ts'

export interface TensorDeclaration {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
}

export interface SafetensorsWriterOptions {
  /** Default { format: 'pt' }, which transformers requires. */
  readonly metadata?: Readonly<Record<string, string>>
  readonly fs?: FileSystem
}

interface Layout {
  readonly order: readonly TensorDeclaration[]
  /** Absolute [begin, end) by name. */
  readonly places: ReadonlyMap<string, readonly [begin: number, end: number]>
  /** The 8 length bytes and the padded JSON. */
  readonly head: Uint8Array
  readonly fileBytes: number
}

/** Lays a file out as the reference writer does: larger types first, then by name; header padded to a multiple of 8. */
export function layoutSafetensors(
  tensors: readonly TensorDeclaration[],
  metadata: Readonly<Record<string, string>> = { format: 'pt' },
): Layout {
  const order = [...tensors].sort((a, b) => dtypeRank(b.dtype) - dtypeRank(a.dtype) || compareCodePoints(a.name, b.name))
  const offsets = new Map<string, readonly [number, number]>()
  const members = Object.keys(metadata).length > 0 ? [`"__metadata__":${JSON.stringify(metadata)}`] : []
  let position = 0
  for (const { name, dtype, shape } of order) {
    const bytes = tensorBytes(dtype, shape)
    if (name === '__metadata__' || offsets.has(name) || /\p{Surrogate}/u.test(name))
      throw new UnslothError('INTERNAL', `Tensor name ${quote(name)} is ${offsets.has(name) ? 'declared twice' : 'not allowed'}.`)
    if (Number.isNaN(bytes))
      throw new UnslothError('INTERNAL', `Tensor ${quote(name)}: ${dtype} of shape [${shape.join(', ')}] has no size in bytes.`)
    offsets.set(name, [position, position + bytes])
    const offset = `[${position},${position + bytes}]`
    members.push(`${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(',')}],"data_offsets":${offset}}`)
    position += bytes
  }
  const json = Buffer.from(`{${members.join(',')}}`, 'utf8')
  const length = Math.ceil(json.length / 8) * 8
  if (length > maxHeaderBytes)
    throw new UnslothError('INTERNAL', `The header of ${formatCount(length)} bytes is over the format's limit.`)
  const head = Buffer.alloc(8 + length, ' ')
  head.writeBigUInt64LE(BigInt(length), 0)
  head.set(json, 8)
  const places = new Map([...offsets].map(([name, [begin, end]]) => [name, [begin + head.length, end + head.length] as const]))
  return { order, places, head, fileBytes: head.length + position }
}

/**
 * Writes one safetensors file, tensor by tensor, with no tensor held in memory. It is written beside its place and appears
 * under its name in `finish`, complete and synced; until then an older file of that name stays.
 */
export class SafetensorsWriter implements TensorSink {
  readonly path: string
  readonly order: readonly TensorDeclaration[]
  /** Bytes of tensor data. */
  readonly totalBytes: number
  private readonly fs: FileSystem
  private readonly temporary: string
  private readonly layout: Layout
  private readonly missing: Set<string>
  private file: OutputFile | undefined
  private state: 'open' | 'sealed' | 'done' | 'aborted' = 'open'

  private constructor(path: string, layout: Layout, fs: FileSystem) {
    this.path = path
    this.layout = layout
    this.fs = fs
    this.order = layout.order
    this.totalBytes = layout.fileBytes - layout.head.length
    this.missing = new Set(layout.places.keys())
    this.temporary = temporaryBeside(path)
  }

  /** Creates the file; fails at once when the disk cannot hold it. */
  static async open(
    path: string,
    tensors: readonly TensorDeclaration[],
    options: SafetensorsWriterOptions = {},
  ): Promise<SafetensorsWriter> {
    const { fs = nodeFileSystem, metadata } = options
    const layout = layoutSafetensors(tensors, metadata)
    await checkFreeSpace(dirname(path), layout.fileBytes, path, fs)
    const writer = new SafetensorsWriter(path, layout, fs)
    await writer.guard(async () => {
      writer.file = await writer.io(fs.create(writer.temporary))
      await writer.io(writer.file.write(layout.head, 0))
    })
    return writer
  }

  async write(name: string, data: TensorData): Promise<void> {
    await this.guard(async () => {
      const place = this.layout.places.get(name)
      if (place === undefined || !this.missing.has(name))
        throw new UnslothError(
          'INTERNAL',
          `${this.path}: tensor ${quote(name)} was ${place === undefined ? 'not declared' : 'written twice'}.`,
        )
      this.missing.delete(name)
      const [begin, end] = place
      let position = begin
      for await (const chunk of data instanceof Uint8Array ? [data] : data) {
        if (position + chunk.length > end) throw this.wrongLength(name, end - begin, 'more')
        await this.io(this.openFile().write(chunk, position))
        position += chunk.length
      }
      if (position < end) throw this.wrongLength(name, end - begin, `only ${formatCount(position - begin)}`)
    })
  }

  /** Completes the temporary file: after this only `publish` can make it appear. */
  async seal(): Promise<void> {
    await this.guard(async () => {
      const [absent] = this.missing
      if (absent !== undefined) throw new UnslothError('INTERNAL', `${this.path}: tensor ${quote(absent)} was never written.`)
      await this.io(this.openFile().sync())
      await this.io(this.closeFile())
      this.state = 'sealed'
    })
  }

  /** Renames the sealed file into place. */
  async publish(): Promise<void> {
    await this.guard(async () => {
      await this.io(this.fs.rename(this.temporary, this.path))
      await this.io(this.fs.sync(dirname(this.path)))
      this.state = 'done'
      releaseTemporary(this.temporary)
    })
  }

  async finish(): Promise<SinkResult> {
    await this.seal()
    await this.publish()
    return { files: [this.path], totalBytes: this.totalBytes }
  }

  async abort(): Promise<void> {
    if (this.state === 'done' || this.state === 'aborted') return
    this.state = 'aborted'
    await this.closeFile().catch(() => undefined)
    await this.fs.remove(this.temporary).catch(() => undefined)
    releaseTemporary(this.temporary)
  }

  private openFile(): OutputFile {
    if (this.file === undefined) throw new UnslothError('INTERNAL', `${this.path}: written to after it was ${this.state}.`)
    return this.file
  }

  private async closeFile(): Promise<void> {
    const file = this.file
    this.file = undefined
    await file?.close()
  }

  private wrongLength(name: string, expected: number, given: string): UnslothError {
    return new UnslothError(
      'INTERNAL',
      `${this.path}: tensor ${quote(name)} needs ${formatCount(expected)} bytes and was given ${given}.`,
    )
  }

  private async guard(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      await this.abort()
      throw error
    }
  }

  /** Names failures of the file system; those of whoever provides the data stay as they are. */
  private async io<T>(work: Promise<T>): Promise<T> {
    try {
      return await work
    } catch (error) {
      throw await writeError(error, this.path, this.fs, this.layout.fileBytes)
    }
  }
}

/** A tensor with its data, or with a function that fetches it when its turn comes. */
export interface NamedTensor extends TensorDeclaration {
  readonly data: TensorData | (() => TensorData | Promise<TensorData>)
}

/** Writes tensors to a sink that declared them, in the sink's order, and finishes it. */
export async function writeTensors(sink: TensorSink, tensors: readonly NamedTensor[]): Promise<SinkResult> {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  try {
    for (const { name } of sink.order) {
      const { data } = byName.get(name)!
      await sink.write(name, typeof data === 'function' ? await data() : data)
    }
  } catch (error) {
    await sink.abort()
    throw error
  }
  return sink.finish()
}

/** Writes one safetensors file at `path`, atomically. */
export async function writeSafetensors(
  path: string,
  tensors: readonly NamedTensor[],
  options: SafetensorsWriterOptions = {},
): Promise<SinkResult> {
  return writeTensors(await SafetensorsWriter.open(path, tensors, options), tensors)
}
