import { createHash } from 'node:crypto'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const goodToken = 'hf_loopbackTokenForTests0123456789'

export interface Asked {
  /** Which of the two servers: the Hub, or the storage that it redirects to. */
  readonly host: 'hub' | 'storage'
  readonly url: string
  readonly authorization: string | undefined
  readonly range: string | undefined
}

/** What goes wrong with one answer: a status, or the content sent in a broken way. */
export interface Fault {
  /** Only for requests whose path contains this. */
  readonly path: string
  readonly host?: Asked['host']
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  /** Bytes of the answer after which the connection is reset… */
  readonly resetAfter?: number
  /** …or ends as if that were all… */
  readonly endAfter?: number
  /** …or nothing more comes. */
  readonly stallAfter?: number
  readonly corrupt?: boolean
  readonly ignoreRange?: boolean
  readonly redirect?: string
  /** How many answers; default 1. */
  times?: number
}

interface StoredFile {
  readonly data: Buffer
  readonly lfs: boolean
}

interface StoredRepository {
  readonly refs: Map<string, string>
  readonly commits: Map<string, Map<string, StoredFile>>
  readonly gated: boolean
  readonly hidden: boolean
}

export type Files = Readonly<Record<string, string | Buffer>>

export const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex')
export const gitHash = (data: Buffer): string => createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex')
const oidOf = ({ data, lfs }: StoredFile): string => (lfs ? sha256(data) : gitHash(data))

/** A Hub and its storage on two loopback ports, as far as downloads need one, with failures on request. */
export class HubServer {
  readonly asked: Asked[] = []
  readonly faults: Fault[] = []
  /** Entries on a page of a listing. */
  pageSize = 3
  private readonly repositories = new Map<string, StoredRepository>()
  private readonly renamed = new Map<string, string>()
  private readonly hub = http.createServer((request, response) => this.answerHub(request, response))
  private readonly storage = http.createServer((request, response) => this.answerStorage(request, response))

  async start(): Promise<void> {
    for (const server of [this.hub, this.storage]) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  }

  stop(): void {
    for (const server of [this.hub, this.storage]) {
      server.closeAllConnections()
      server.close()
    }
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.hub.address() as AddressInfo).port}`
  }

  private get storageAddress(): string {
    return `http://127.0.0.1:${(this.storage.address() as AddressInfo).port}`
  }

  /** Puts a new commit on a branch; `id` is `org/name` or `datasets/org/name`. Files of 1 KiB and more are large files. Returns the commit. */
  push(id: string, files: Files, { branch = 'main', gated = false, hidden = false } = {}): string {
    const stored = new Map(
      Object.entries(files).map(([path, content]) => {
        const data = Buffer.from(content)
        return [path, { data, lfs: data.length >= 1024 && !path.endsWith('.json') }] as const
      }),
    )
    const repository = this.repositories.get(id) ?? {
      refs: new Map<string, string>(),
      commits: new Map<string, Map<string, StoredFile>>(),
      gated,
      hidden,
    }
    this.repositories.set(id, repository)
    const commit = createHash('sha1')
      .update(JSON.stringify([...stored].map(([path, file]) => [path, oidOf(file)])) + id)
      .digest('hex')
    repository.commits.set(commit, stored)
    repository.refs.set(branch, commit)
    return commit
  }

  rename(from: string, to: string): void {
    this.renamed.set(from, to)
  }

  /** Requests of a kind since the last look. */
  take(): Asked[] {
    return this.asked.splice(0)
  }

  private note(host: Asked['host'], request: IncomingMessage): void {
    this.asked.push({
      host,
      url: decodeURIComponent(request.url ?? ''),
      authorization: request.headers.authorization,
      range: request.headers.range,
    })
  }

  private fault(host: Asked['host'], url: string): Fault | undefined {
    const fault = this.faults.find(
      (candidate) => (candidate.host ?? host) === host && url.includes(candidate.path) && (candidate.times ?? 1) > 0,
    )
    if (fault !== undefined) fault.times = (fault.times ?? 1) - 1
    return fault
  }

  private answerHub(request: IncomingMessage, response: ServerResponse): void {
    this.note('hub', request)
    const url = new URL(request.url ?? '/', this.endpoint)
    const fault = this.fault('hub', url.pathname)
    if (fault?.status !== undefined) return void response.writeHead(fault.status, fault.headers).end()
    if (fault?.redirect !== undefined) return void response.writeHead(302, { location: fault.redirect }).end()
    const api = /^\/api\/(models|datasets)\/(.+?)\/(revision|tree)\/([^/]+)$/.exec(url.pathname)
    const file = /^\/((?:datasets\/)?[^/]+(?:\/[^/]+)?)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    const id = api !== null ? `${api[1] === 'datasets' ? 'datasets/' : ''}${api[2]}` : file?.[1]
    if (id === undefined) return refuse(response, 404, 'Unknown', 'Not found')
    const newer = this.renamed.get(id)
    if (newer !== undefined)
      return void response
        .writeHead(307, {
          location: url.pathname.replace(id.replace('datasets/', ''), newer.replace('datasets/', '')) + url.search,
        })
        .end()
    const repository = this.repositories.get(id)
    const authorized = request.headers.authorization === `Bearer ${goodToken}`
    if (request.headers.authorization !== undefined && !authorized)
      return refuse(response, 401, '', 'Invalid credentials in Authorization header')
    if (repository === undefined || (repository.hidden && !authorized))
      return refuse(response, authorized ? 404 : 401, 'RepoNotFound', 'Repository not found')
    const revision = decodeURIComponent((api?.[4] ?? file?.[2])!)
    const commit = repository.refs.get(revision) ?? (repository.commits.has(revision) ? revision : undefined)
    if (commit === undefined) return refuse(response, 404, 'RevisionNotFound', `Invalid rev id: ${revision}`)
    const files = repository.commits.get(commit)!
    if (api?.[3] === 'revision')
      return json(response, {
        _id: 'x',
        id: id.replace('datasets/', ''),
        sha: commit,
        private: repository.hidden,
        gated: repository.gated ? 'auto' : false,
        downloads: 0,
        likes: 0,
        lastModified: new Date(0).toISOString(),
      })
    if (api !== null) return this.answerTree(response, url, files)
    if (repository.gated && !authorized)
      return refuse(
        response,
        request.headers.authorization === undefined ? 401 : 403,
        'GatedRepo',
        'Access to this repository is restricted. You must have access to it and be authenticated to access it.',
      )
    const stored = files.get(decodeURIComponent(file![3]!))
    if (stored === undefined) return refuse(response, 404, 'EntryNotFound', 'Entry not found')
    const headers = { 'x-repo-commit': commit, 'accept-ranges': 'bytes' }
    if (!stored.lfs) return this.send(request, response, stored.data, { ...headers, etag: `"${oidOf(stored)}"` }, fault)
    const location = `${this.storageAddress}/${id}/${encodeURIComponent(file![3]!)}?commit=${commit}&signature=abc`
    response
      .writeHead(302, {
        ...headers,
        location,
        'x-linked-etag': `"${oidOf(stored)}"`,
        'x-linked-size': String(stored.data.length),
      })
      .end()
  }

  private answerTree(response: ServerResponse, url: URL, files: ReadonlyMap<string, StoredFile>): void {
    const folders = new Set(
      [...files.keys()].flatMap((path) =>
        path
          .split('/')
          .slice(0, -1)
          .map((_, depth, parts) => parts.slice(0, depth + 1).join('/')),
      ),
    )
    const entries = [
      ...[...folders].map((path) => ({ type: 'directory', oid: '0'.repeat(40), size: 0, path })),
      ...[...files].map(([path, file]) => ({
        type: 'file',
        oid: gitHash(file.data),
        size: file.data.length,
        path,
        ...(file.lfs ? { lfs: { oid: sha256(file.data), size: file.data.length, pointerSize: 130 } } : {}),
      })),
    ]
    const from = Number(url.searchParams.get('cursor') ?? 0)
    const next = from + this.pageSize
    if (next < entries.length) {
      url.searchParams.set('cursor', String(next))
      response.setHeader('link', `<${url.href}>; rel="next"`)
    }
    json(response, entries.slice(from, next))
  }

  private answerStorage(request: IncomingMessage, response: ServerResponse): void {
    this.note('storage', request)
    const url = new URL(request.url ?? '/', this.storageAddress)
    const fault = this.fault('storage', url.pathname)
    if (fault?.status !== undefined) return void response.writeHead(fault.status, fault.headers).end()
    const [, id, name] = /^\/(.+)\/([^/]+)$/.exec(url.pathname)!
    const stored = this.repositories
      .get(id!)
      ?.commits.get(url.searchParams.get('commit') ?? '')
      ?.get(decodeURIComponent(decodeURIComponent(name!)))
    if (stored === undefined) return refuse(response, 404, '', 'NoSuchKey')
    this.send(request, response, stored.data, { etag: `"${oidOf(stored)}"`, 'accept-ranges': 'bytes' }, fault)
  }

  private send(
    request: IncomingMessage,
    response: ServerResponse,
    whole: Buffer,
    headers: Readonly<Record<string, string>>,
    fault: Fault | undefined,
  ): void {
    const from = fault?.ignoreRange === true ? undefined : /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1]
    if (from !== undefined && Number(from) >= whole.length)
      return void response.writeHead(416, { 'content-range': `bytes */${whole.length}` }).end()
    const data = Buffer.from(from === undefined ? whole : whole.subarray(Number(from)))
    if (fault?.corrupt === true) data[data.length >> 1]! ^= 1
    const range = from === undefined ? {} : { 'content-range': `bytes ${from}-${whole.length - 1}/${whole.length}` }
    const cut = fault?.resetAfter ?? fault?.endAfter ?? fault?.stallAfter
    response.writeHead(from === undefined ? 200 : 206, {
      ...headers,
      ...range,
      ...(fault?.endAfter === undefined ? { 'content-length': data.length } : {}),
    })
    if (cut === undefined) return void response.end(data)
    if (fault?.endAfter !== undefined) return void response.end(data.subarray(0, cut))
    response.write(data.subarray(0, cut), () => {
      // A reset overtakes bytes that are on their way.
      if (fault?.resetAfter !== undefined) setTimeout(() => response.socket?.resetAndDestroy(), 20)
    })
  }
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

function refuse(response: ServerResponse, status: number, code: string, message: string): void {
  response
    .writeHead(status, {
      'content-type': 'application/json',
      ...(code === '' ? {} : { 'x-error-code': code }),
      'x-error-message': message,
    })
    .end(JSON.stringify({ error: message }))
}
