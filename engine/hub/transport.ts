import { UnslothError } from '#shared/errors.ts'
import { formatDuration } from '#shared/units.ts'
import { connectionError, isTransientStatus, retryAfterOf, statusError, TransientError, waitHint } from './hubErrors.ts'
import type { Repository } from './repository.ts'
import type { HubSettings } from './settings.ts'

/** Redirects that are followed for one file. */
const redirectLimit = 10
/** New attempts without a byte of progress in between. */
const attemptLimit = 5
const unreachableLimit = 2
const longestDelay = 30_000
/** A server that wants to be left alone for longer is not waited for. */
const longestWait = 120_000

export interface TransportOptions {
  readonly signal?: AbortSignal | undefined
  /** Told when an attempt failed and another will be made. */
  readonly onRetry?: ((reason: string, delay: number) => void) | undefined
}

const stopped = () => new UnslothError('STOPPED', 'Stopped while fetching from the Hub.')

/** Resolves after so many milliseconds, or rejects as stopped. */
export function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(stopped())
    const onAbort = () => {
      clearTimeout(timer)
      reject(stopped())
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, milliseconds)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** One answer being read; given up when no byte has come for the time of the settings, or when the user stops. */
export interface Connection {
  readonly response: Response
  /** The body in pieces. A broken connection is a TransientError. */
  chunks(): AsyncGenerator<Uint8Array>
  close(): void
}

/**
 * Requests to one Hub. The token goes to the Hub's own address only, whatever it redirects to. Failures that may pass are tried
 * again, others are told in the user's words.
 */
export class Transport {
  readonly settings: HubSettings
  private readonly options: TransportOptions

  constructor(settings: HubSettings, options: TransportOptions = {}) {
    this.settings = settings
    this.options = options
  }

  /** The same Hub, for work that this signal stops. */
  with(signal: AbortSignal): Transport {
    return new Transport(this.settings, { ...this.options, signal })
  }

  private get isStopped(): boolean {
    return this.options.signal?.aborted === true
  }

  /** For a library that wants a `fetch`: an answer that is no success is an UnslothError about the repository. */
  fetchFor(repository: Repository): typeof fetch {
    return async (input) => {
      const url = typeof input === 'string' ? input : input instanceof URL ? input.href : input.url
      return this.retrying(async () => {
        const connection = await this.open(url, repository, { accept: 'application/json' })
        const parts: Uint8Array[] = []
        try {
          for await (const chunk of connection.chunks()) parts.push(chunk)
        } finally {
          connection.close()
        }
        const body = Buffer.concat(parts)
        checkJson(body, url)
        return new Response(body, { status: 200, headers: connection.response.headers })
      })
    }
  }

  /** Runs `attempt` again after transient failures. `progress` tells a number that grows when attempts get somewhere. */
  async retrying<T>(attempt: () => Promise<T>, progress: () => number = () => 0): Promise<T> {
    let reached = progress()
    for (let failures = 0; ;) {
      if (this.isStopped) throw stopped()
      try {
        return await attempt()
      } catch (error) {
        if (this.isStopped) throw stopped()
        if (!(error instanceof TransientError)) throw error
        if (progress() > reached) failures = 0
        reached = progress()
        failures++
        if (failures >= (error.unreachable && reached === 0 ? unreachableLimit : attemptLimit)) throw this.givenUp(error)
        const delay =
          error.retryAfter ?? Math.min(longestDelay, this.settings.retryDelay * 2 ** (failures - 1)) * (0.75 + Math.random() / 2)
        if (delay > longestWait)
          throw new UnslothError('HUB', `The Hub asks to be left alone for ${formatDuration(delay / 1000)}.`, {
            hint: waitHint(delay),
            cause: error,
          })
        this.options.onRetry?.(error.message, delay)
        await pause(delay, this.options.signal)
      }
    }
  }

  private givenUp(error: TransientError): UnslothError {
    const hint = error.unreachable
      ? 'Check the network, the proxy and HF_ENDPOINT. HF_HUB_OFFLINE=1 uses what was fetched before.'
      : 'Try again later; what was fetched so far is kept and not fetched again.'
    return new HubUnreachable(`${error.message[0]!.toUpperCase()}${error.message.slice(1)}.`, { hint, cause: error })
  }

  /** Follows redirects to a success. Other answers are UnslothErrors or, when they may pass, TransientErrors. */
  async open(
    address: string,
    repository: Repository,
    headers: Readonly<Record<string, string>>,
    accepted: readonly number[] = [],
  ): Promise<Connection> {
    const abort = new AbortController()
    const { signal } = this.options
    const onAbort = () => abort.abort()
    signal?.addEventListener('abort', onAbort, { once: true })
    let timer: NodeJS.Timeout | undefined
    const alive = () => {
      clearTimeout(timer)
      timer = setTimeout(() => abort.abort(), this.settings.stallTimeout)
    }
    const close = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      abort.abort()
    }
    const home = new URL(this.settings.endpoint)
    let url = new URL(address)
    const failure = (error: unknown) => {
      if (signal?.aborted === true) return stopped()
      const stall = abort.signal.aborted
        ? new TransientError(`${url.host} sent nothing for ${formatDuration(this.settings.stallTimeout / 1000)}`, {
            cause: error,
          })
        : error
      return connectionError(stall, url.host)
    }
    try {
      for (let redirects = 0; ; redirects++) {
        alive()
        const authorization =
          url.origin === home.origin && this.settings.token !== undefined
            ? { authorization: `Bearer ${this.settings.token}` }
            : {}
        let response: Response
        try {
          response = await fetch(url, {
            headers: { ...headers, 'accept-encoding': 'identity', 'user-agent': 'unsloth-vscode', ...authorization },
            redirect: 'manual',
            signal: abort.signal,
          })
        } catch (error) {
          throw failure(error)
        }
        const target = [301, 302, 303, 307, 308].includes(response.status) ? response.headers.get('location') : null
        if (target === null) {
          this.check(response, repository, url.origin === home.origin, accepted)
          return { response, chunks: () => readBody(response, alive, failure), close }
        }
        await response.body?.cancel()
        if (redirects >= redirectLimit)
          throw new UnslothError('HUB', `${home.host} redirects ${repository.id} in circles.`, {
            hint: 'Check HF_ENDPOINT, and whether a proxy stands between.',
          })
        url = redirected(target, url)
      }
    } catch (error) {
      close()
      throw error
    }
  }

  private check(response: Response, repository: Repository, own: boolean, accepted: readonly number[]): void {
    if (response.ok || accepted.includes(response.status)) return
    // A signed address of the storage that has run out; the next attempt gets a new one.
    const expired = !own && [401, 403, 404].includes(response.status)
    if (isTransientStatus(response.status) || expired)
      throw new TransientError(`${own ? 'the Hub' : 'the storage of the Hub'} answered ${response.status}`, {
        retryAfter: retryAfterOf(response.headers),
      })
    throw statusError(response, repository, this.settings)
  }
}

/** The Hub could not be reached or did not deliver: what is in the cache may do instead. */
export class HubUnreachable extends UnslothError {
  constructor(message: string, details: { hint: string; cause: unknown }) {
    super('HUB', message, details)
  }
}

function redirected(target: string, from: URL): URL {
  const url = URL.canParse(target, from.href) ? new URL(target, from) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol))
    throw new UnslothError('HUB', `${from.host} redirects to something that is no web address.`)
  if (from.protocol === 'https:' && url.protocol === 'http:')
    throw new UnslothError(
      'HUB',
      `${from.host} redirects from a safe connection to an open one (${url.host}), which is refused.`,
      { hint: 'Check HF_ENDPOINT, and whether a proxy stands between.' },
    )
  return url
}

async function* readBody(response: Response, alive: () => void, failure: (error: unknown) => Error): AsyncGenerator<Uint8Array> {
  if (response.body === null) return
  const reader = response.body.getReader()
  for (;;) {
    alive()
    let part: Awaited<ReturnType<typeof reader.read>>
    try {
      part = await reader.read()
    } catch (error) {
      throw failure(error)
    }
    if (part.done) return
    yield part.value as Uint8Array
  }
}

/** A page of a proxy or a log-in form in the place of an answer is told apart from a broken Hub. */
function checkJson(body: Buffer, url: string): void {
  try {
    JSON.parse(body.toString('utf8'))
  } catch (error) {
    const page = /^\s*</.test(body.subarray(0, 200).toString('latin1'))
    throw new UnslothError(
      'HUB',
      `${new URL(url).host} answers with ${page ? 'a web page' : 'something'} that is not what a Hub sends.`,
      { hint: 'Check HF_ENDPOINT, and whether a proxy or a log-in page stands between.', cause: error },
    )
  }
}
