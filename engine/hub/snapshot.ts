import { datasetInfo, listFiles, modelInfo } from '@huggingface/hub'
import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import { quote } from '../io/printable.ts'
import { downloadBlob } from './downloadBlob.ts'
import { isCommit, kindOf, type Repository } from './repository.ts'
import { isSafePath, RepositoryCache, type HubFile } from './repositoryCache.ts'
import { hubSettings, type HubSettings } from './settings.ts'
import { TransferProgress, type HubProgress } from './transferProgress.ts'
import { HubUnreachable, Transport } from './transport.ts'

export interface HubOptions {
  /** Default: those of the environment. */
  readonly settings?: HubSettings | undefined
  /** Only what the cache has, whatever the settings say. */
  readonly cacheOnly?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: HubProgress) => void) | undefined
  /** One sentence about something unusual that does not stop the work. */
  readonly onNotice?: ((notice: string) => void) | undefined
}

/** Files fetched at the same time. */
const parallel = 4
/** The disk keeps this much free beside what is fetched. */
const spareBytes = 64 * 2 ** 20

/** A repository at one commit: what it has, and the way to get it. */
export class Snapshot {
  readonly repository: Repository
  readonly commit: string
  /** Every file of the commit; offline without a listing, those that are there. */
  readonly files: ReadonlyMap<string, HubFile>
  /** Whether `files` is known to be all. */
  readonly complete: boolean
  /** In the cache. */
  readonly folder: string
  private readonly cache: RepositoryCache
  private readonly transport: Transport | undefined
  private readonly progress: TransferProgress
  private readonly signal: AbortSignal | undefined

  private constructor(
    cache: RepositoryCache,
    commit: string,
    files: readonly HubFile[],
    complete: boolean,
    transport: Transport | undefined,
    progress: TransferProgress,
    signal: AbortSignal | undefined,
  ) {
    this.cache = cache
    this.repository = cache.repository
    this.commit = commit
    this.files = new Map(files.map((file) => [file.path, file]))
    this.complete = complete
    this.folder = cache.snapshotFolder(commit)
    this.transport = transport
    this.progress = progress
    this.signal = signal
  }

  /** Asks what the revision stands for now, and which files it has. Without a connection the cache answers, if it can. */
  static async open(repository: Repository, options: HubOptions = {}): Promise<Snapshot> {
    const settings = options.settings ?? hubSettings()
    const cache = new RepositoryCache(settings.cache, repository)
    const progress = new TransferProgress(repository.id, options.onProgress)
    const transport = new Transport(settings, {
      signal: options.signal,
      onRetry: (reason, delay) => progress.wait(`${reason}; trying again in ${Math.ceil(delay / 1000)} s`),
    })
    const fromCache = async (use: Transport | undefined): Promise<Snapshot | undefined> => {
      const commit = await cache.commit()
      if (commit === undefined) return undefined
      const listing = await cache.listing(commit)
      if (listing === undefined && use !== undefined) return undefined
      const files = listing ?? (await cache.filesPresent(commit))
      return files.length === 0
        ? undefined
        : new Snapshot(cache, commit, files, listing !== undefined, use, progress, options.signal)
    }
    if (settings.offline || options.cacheOnly === true) {
      const cached = await fromCache(undefined)
      if (cached !== undefined) return cached
      throw notCached(repository, settings)
    }
    // What a commit has never changes.
    if (isCommit(repository.revision)) {
      const cached = await fromCache(transport)
      if (cached !== undefined) return cached
    }
    try {
      const commit = await commitOf(repository, transport)
      let files = await cache.listing(commit)
      if (files === undefined) await cache.rememberListing(commit, (files = await filesOf(repository, commit, transport)))
      await cache.rememberCommit(commit)
      return new Snapshot(cache, commit, files, true, transport, progress, options.signal)
    } catch (error) {
      const cached = error instanceof HubUnreachable ? await fromCache(undefined) : undefined
      if (cached === undefined) throw error
      options.onNotice?.(`${(error as Error).message} ${repository.id} is used as it was fetched before.`)
      return cached
    }
  }

  path(file: string): string {
    return this.cache.path(this.commit, file)
  }

  /** Whether all of these are in the cache. */
  async has(paths: readonly string[]): Promise<boolean> {
    for (const path of paths) if (!(await this.cache.has(this.commit, this.file(path)))) return false
    return true
  }

  private file(path: string): HubFile {
    const file = this.files.get(path)
    if (file === undefined)
      throw new UnslothError('HUB', `${this.repository.id} has no file ${quote(path)}.`, {
        hint: 'The repository is incomplete; try another revision.',
      })
    return file
  }

  /** Makes these files present, fetching what is missing. */
  async fetch(paths: readonly string[]): Promise<void> {
    const missing: HubFile[] = []
    for (const path of new Set(paths)) if (!(await this.cache.has(this.commit, this.file(path)))) missing.push(this.file(path))
    if (missing.length === 0) return
    const { transport } = this
    if (transport === undefined) throw incomplete(this.repository, missing)
    await this.checkSpace(missing)
    for (const { path, size } of missing) this.progress.add(path, size)
    const queue = [...missing].sort((a, b) => a.size - b.size)
    const stop = new AbortController()
    const signal = this.signal === undefined ? stop.signal : AbortSignal.any([this.signal, stop.signal])
    const stoppable = transport.with(signal)
    const work = async (): Promise<void> => {
      for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
        const { path } = file
        await downloadBlob(this.cache, this.commit, file, stoppable, {
          signal,
          onBytes: (bytes) => this.progress.bytes(path, bytes),
          onWait: (purpose) => this.progress.wait(purpose),
        })
        await this.cache.linkFile(this.commit, file)
        this.progress.done(path)
      }
    }
    const failures: unknown[] = []
    await Promise.all(
      Array.from({ length: Math.min(parallel, missing.length) }, () =>
        work().catch((error: unknown) => {
          failures.push(error)
          stop.abort()
        }),
      ),
    )
    if (failures.length > 0) throw failures[0]
  }

  private async checkSpace(missing: readonly HubFile[]): Promise<void> {
    let needed = spareBytes
    for (const file of missing) if (!(await this.cache.hasBlob(file))) needed += file.size
    const free = await this.cache.freeBytes()
    if (free === undefined || free >= needed) return
    throw new UnslothError(
      'FILE_WRITE',
      `${this.repository.id} needs ${formatBytes(needed)} on the disk of ${this.cache.folder}, and ${formatBytes(free)} are free.`,
      { hint: 'Free some space, or name a folder on a larger disk in HF_HUB_CACHE.' },
    )
  }
}

function notCached(repository: Repository, settings: HubSettings): UnslothError {
  const at = repository.revision === 'main' ? '' : ` at ${repository.revision}`
  const why = settings.offline ? 'HF_HUB_OFFLINE is set, so nothing is fetched' : 'nothing is fetched here'
  return new UnslothError(
    'HUB',
    `The ${kindOf(repository)} ${repository.id}${at} is not in the Hub cache ${settings.cache}, and ${why}.`,
    { hint: 'Unset HF_HUB_OFFLINE once to fetch it, copy it into the cache, or name a local folder or file.' },
  )
}

function incomplete(repository: Repository, missing: readonly HubFile[]): UnslothError {
  const more = missing.length > 1 ? ` and ${missing.length - 1} more` : ''
  return new UnslothError(
    'HUB',
    `${repository.id} is in the Hub cache only in part: ${quote(missing[0]!.path)}${more} was never fetched, and nothing is fetched now.`,
    { hint: 'Unset HF_HUB_OFFLINE, or connect to the network, once: what is there is not fetched again.' },
  )
}

/** The commit that the revision stands for now. */
async function commitOf({ type, id, revision }: Repository, transport: Transport): Promise<string> {
  const params = { name: id, revision, hubUrl: transport.settings.endpoint, fetch: transport.fetchFor({ type, id, revision }) }
  const { sha } =
    type === 'model'
      ? await modelInfo({ ...params, additionalFields: ['sha'] })
      : await datasetInfo({ ...params, additionalFields: ['sha'] })
  if (typeof sha === 'string' && isCommit(sha)) return sha
  throw new UnslothError('HUB', `${transport.settings.endpoint} does not say which commit ${id} is at.`, {
    hint: 'Check HF_ENDPOINT: it does not answer as a Hub does.',
  })
}

async function filesOf(repository: Repository, commit: string, transport: Transport): Promise<HubFile[]> {
  const { type, id } = repository
  const files: HubFile[] = []
  for await (const entry of listFiles({
    repo: { type, name: id },
    revision: commit,
    recursive: true,
    hubUrl: transport.settings.endpoint,
    fetch: transport.fetchFor(repository),
  })) {
    if (entry.type !== 'file') continue
    const { path } = entry
    const oid = entry.lfs?.oid ?? entry.oid
    const size = entry.lfs?.size ?? entry.size
    if (
      typeof path !== 'string' ||
      typeof size !== 'number' ||
      oid === undefined ||
      !/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(oid) ||
      !isSafePath(path)
    )
      throw new UnslothError(
        'HUB',
        `${transport.settings.endpoint} lists ${quote(String(path))} in ${id}, which cannot be stored.`,
        { hint: 'Check HF_ENDPOINT: it does not answer as a Hub does.' },
      )
    files.push({ path, size, oid })
  }
  return files
}
