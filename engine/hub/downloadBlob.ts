import { createHash, type Hash } from 'node:crypto'
import { open, rename, rm, stat, type FileHandle } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { writeError } from '../io/fileSystem.ts'
import { ExclusiveLock } from '../run/exclusiveLock.ts'
import { TransientError } from './hubErrors.ts'
import { webPath } from './repository.ts'
import type { HubFile, RepositoryCache } from './repositoryCache.ts'
import { pause, type Transport } from './transport.ts'

export interface BlobEvents {
  readonly signal?: AbortSignal | undefined
  /** Bytes of the file that are there, from the network or from earlier; may go back when a part turns out to be damaged. */
  readonly onBytes: (bytes: number) => void
  readonly onWait: (purpose: string) => void
}

/** How often a waiting process looks whether another one has finished. */
const lookInterval = 100
/** A process that is fetching writes far more often. */
const abandonedAfter = 10 * 60_000

const hasherFor = ({ oid, size }: HubFile): Hash =>
  oid.length === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`)

/**
 * Fetches a file's blob, unless it is there: into `<hash>.unsloth.incomplete`, on from where an earlier attempt or process stopped;
 * checked by its hash, synced, renamed. Of several processes one fetches and the others wait for it.
 */
export async function downloadBlob(
  cache: RepositoryCache,
  commit: string,
  file: HubFile,
  transport: Transport,
  events: BlobEvents,
): Promise<void> {
  if (await cache.hasBlob(file)) return
  const lock = await takeLock(cache, file, events)
  const touch = setInterval(() => lock.touch(), 5000)
  try {
    if (await cache.hasBlob(file)) return
    const blob = cache.blobPath(file.oid)
    await cache.makeFolder(dirname(blob))
    const partial = await adoptPartial(blob)
    try {
      await new BlobDownload(cache, commit, file, transport, events).into(partial)
      await rename(partial, blob)
      await cache.fs.sync(dirname(blob))
    } catch (error) {
      // A damaged part helps nobody; an incomplete one stays for the next attempt.
      if (error instanceof WrongChecksum) await rm(partial, { force: true })
      throw error instanceof UnslothError ? error : await writeError(error, partial, cache.fs, file.size)
    }
  } finally {
    clearInterval(touch)
    lock.release()
  }
}

async function takeLock(cache: RepositoryCache, file: HubFile, { signal, onWait }: BlobEvents): Promise<ExclusiveLock> {
  for (;;) {
    const lock = await ExclusiveLock.acquire(
      join(cache.lockFolder, `${file.oid}.unsloth`),
      `fetching ${cache.repository.id}/${file.path}`,
    )
    if (lock instanceof ExclusiveLock) return lock
    onWait(`another process (${lock.pid}) is ${lock.purpose}`)
    await pause(lookInterval, signal)
  }
}

/** Our unfinished file; the one that a Python library left there a while ago becomes it. */
async function adoptPartial(blob: string): Promise<string> {
  const own = `${blob}.unsloth.incomplete`
  const [mine, theirs] = await Promise.all([own, `${blob}.incomplete`].map((path) => stat(path).catch(() => undefined)))
  if (mine === undefined && theirs !== undefined && Date.now() - theirs.mtimeMs > abandonedAfter)
    await rename(`${blob}.incomplete`, own).catch(() => undefined)
  return own
}

/** What came has another hash than what was announced. */
class WrongChecksum extends UnslothError {}

class BlobDownload {
  private readonly cache: RepositoryCache
  private readonly file: HubFile
  private readonly transport: Transport
  private readonly events: BlobEvents
  private readonly address: string
  private hash: Hash
  private offset = 0
  /** Bytes from the network since the beginning: grows with every success, whatever is thrown away. */
  private received = 0

  constructor(cache: RepositoryCache, commit: string, file: HubFile, transport: Transport, events: BlobEvents) {
    this.cache = cache
    this.file = file
    this.transport = transport
    this.events = events
    const place = `${webPath(cache.repository)}/resolve/${commit}/${file.path.split('/').map(encodeURIComponent).join('/')}`
    this.address = `${transport.settings.endpoint}/${place}`
    this.hash = hasherFor(file)
  }

  async into(path: string): Promise<void> {
    const handle = await open(path, 'a+').then(async (created) => {
      await created.close()
      return open(path, 'r+')
    })
    try {
      await this.takeUp(handle)
      for (let attempt = 1; ; attempt++) {
        await this.transport.retrying(
          () => this.continue(handle),
          () => this.received,
        )
        const digest = this.hash.digest('hex')
        if (digest === this.file.oid) break
        if (attempt === 2) throw this.wrongChecksum(digest)
        await this.restart(handle)
      }
      await handle.sync()
    } finally {
      await handle.close()
    }
  }

  private wrongChecksum(digest: string): WrongChecksum {
    const { oid, path } = this.file
    const what = `${this.cache.repository.id}/${path} arrived damaged, twice: its checksum is ${digest.slice(0, 16)}… and should be ${oid.slice(0, 16)}….`
    return new WrongChecksum('HUB', what, {
      hint: 'A proxy or mirror may change files: check HF_ENDPOINT, or try again later. Nothing damaged was kept.',
    })
  }

  /** Hashes what an earlier attempt has left. */
  private async takeUp(handle: FileHandle): Promise<void> {
    const { size } = await handle.stat()
    if (size > this.file.size) return this.restart(handle)
    const buffer = Buffer.alloc(Math.min(size, 1 << 20))
    while (this.offset < size) {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, this.offset)
      if (bytesRead === 0) break
      this.hash.update(buffer.subarray(0, bytesRead))
      this.offset += bytesRead
      if (this.events.signal?.aborted === true) throw new UnslothError('STOPPED', 'Stopped while fetching from the Hub.')
    }
    this.events.onBytes(this.offset)
  }

  private async restart(handle: FileHandle): Promise<void> {
    await handle.truncate(0)
    this.hash = hasherFor(this.file)
    this.offset = 0
    this.events.onBytes(0)
  }

  /** One request, from where the file ends to its end. */
  private async continue(handle: FileHandle): Promise<void> {
    if (this.offset === this.file.size) return
    const range: Record<string, string> = this.offset === 0 ? {} : { range: `bytes=${this.offset}-` }
    const connection = await this.transport.open(this.address, this.cache.repository, range, [416])
    try {
      const { status, headers } = connection.response
      if (status === 416) {
        await this.restart(handle)
        throw new TransientError('the Hub refused to go on within the file')
      }
      if (!this.continues(status, headers)) await this.restart(handle)
      for await (const chunk of connection.chunks()) {
        if (this.offset + chunk.length > this.file.size) {
          await this.restart(handle)
          throw new TransientError(`more than the ${formatCount(this.file.size)} bytes of ${this.file.path} arrived`)
        }
        await this.write(handle, chunk)
      }
    } finally {
      connection.close()
    }
    if (this.offset < this.file.size)
      throw new TransientError(
        `${this.file.path} ended after ${formatCount(this.offset)} of ${formatCount(this.file.size)} bytes`,
      )
  }

  /** Whether the answer goes on where the file ends, and is not the whole file again. */
  private continues(status: number, headers: Headers): boolean {
    if (this.offset === 0 && status === 200) return true
    const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers.get('content-range') ?? '') ?? []
    if (status === 206 && Number(from) === this.offset && (total === '*' || Number(total) === this.file.size)) return true
    if (status === 206) throw new TransientError('the Hub answered with another part of the file than was asked for')
    return false
  }

  private async write(handle: FileHandle, chunk: Uint8Array): Promise<void> {
    for (let done = 0; done < chunk.length;) {
      const { bytesWritten } = await handle.write(chunk, done, chunk.length - done, this.offset + done)
      if (bytesWritten === 0) throw Object.assign(new Error('the device accepts no more data'), { code: 'ENOSPC' })
      done += bytesWritten
    }
    this.hash.update(chunk)
    this.offset += chunk.length
    this.received += chunk.length
    this.events.onBytes(this.offset)
  }
}
