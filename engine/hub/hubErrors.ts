import { UnslothError } from '#shared/errors.ts'
import { formatDuration } from '#shared/units.ts'
import { kindOf, webPath, type Repository } from './repository.ts'
import type { HubSettings } from './settings.ts'

/** A failure that another attempt may mend. */
export class TransientError extends Error {
  /** Milliseconds that the server wants to be left alone for. */
  readonly retryAfter: number | undefined
  /** Nothing answers there at all, so few attempts will do. */
  readonly unreachable: boolean

  constructor(message: string, options: { retryAfter?: number | undefined; unreachable?: boolean; cause?: unknown } = {}) {
    super(message, { cause: options.cause })
    this.retryAfter = options.retryAfter
    this.unreachable = options.unreachable === true
  }
}

const tokenHint =
  'Set HF_TOKEN to a token of yours (https://huggingface.co/settings/tokens); it is never written to a recipe, a log or a run.'

/** Answers after which the same question may succeed. */
export const isTransientStatus = (status: number): boolean =>
  [408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524].includes(status)

/** Milliseconds that an answer asks to wait: `Retry-After` in seconds or as a date, or the Hub's own `RateLimit: "api";r=0;t=55`. */
export function retryAfterOf(headers: Headers, now = Date.now()): number | undefined {
  const text = headers.get('retry-after')?.trim()
  if (text !== undefined && text !== '') {
    const milliseconds = /^\d+(?:\.\d+)?$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now
    if (Number.isFinite(milliseconds)) return Math.max(0, milliseconds)
  }
  const reset = /\bt=(\d+)/.exec(headers.get('ratelimit') ?? '')?.[1]
  return reset === undefined ? undefined : Number(reset) * 1000
}

/** Control characters out, and short: what a server says is shown, but not trusted. */
const said = (text: string | null): string =>
  text === null
    ? ''
    : text
        .replace(/[\p{Cc}\p{Cf}]+/gu, ' ')
        .trim()
        .slice(0, 300)

/** What an answer that is no success means for the user, and what to do. */
export function statusError(response: Response, repository: Repository, settings: HubSettings): UnslothError {
  const { status, headers } = response
  const code = headers.get('x-error-code') ?? ''
  const message = said(headers.get('x-error-message'))
  const { id, revision } = repository
  const page = `${settings.endpoint}/${webPath(repository)}`
  const error = (text: string, hint: string) => new UnslothError('HUB', text, { hint })
  if (code === 'GatedRepo' || /gated|awaiting a review/i.test(message)) {
    const step = /awaiting a review|pending/i.test(message)
      ? `Your request for access is waiting for its owners; look at ${page}.`
      : `Accept its licence at ${page} while logged in.`
    return error(
      `${id} is gated: its owners let only those download it who have accepted their terms.`,
      settings.token === undefined
        ? `${step} Then: ${tokenHint}`
        : `${step} The token (HF_TOKEN, or the token file of the Hub) has to belong to the same account and to have read access to gated repositories.`,
    )
  }
  if (code === 'RevisionNotFound')
    return error(`${id} has no revision ${JSON.stringify(revision)}.`, `Branches and tags are listed at ${page}/tree/main.`)
  if (code === 'EntryNotFound')
    return error(
      `${id} has no such file at ${revision}.`,
      `Its files are listed at ${page}/tree/${encodeURIComponent(revision)}.`,
    )
  if (
    status === 401 &&
    /invalid (?:credentials|username)/i.test(message) &&
    settings.token !== undefined &&
    code !== 'RepoNotFound'
  )
    return error(
      'The Hub does not accept the access token.',
      'It is mistyped, expired or revoked. Set HF_TOKEN to a valid one, or unset it and remove the token file of the Hub.',
    )
  if (code === 'RepoNotFound' || status === 401 || status === 404) {
    const hidden =
      settings.token === undefined
        ? `If it is private: ${tokenHint}`
        : 'If it is private, the token has to belong to an account that may read it.'
    return error(
      `There is no ${kindOf(repository)} ${id} at ${settings.endpoint}, or it is private.`,
      `Check the name: there is no folder or file of that name here, either. ${hidden}`,
    )
  }
  if (status === 403)
    return error(
      `The Hub refuses access to ${id}${message === '' ? '' : `: ${message}`}.`,
      settings.token === undefined
        ? tokenHint
        : 'Look at the rights of the access token, and whether the repository is disabled.',
    )
  if (status === 429)
    return error('The Hub has had too many requests from here and asks to wait.', waitHint(retryAfterOf(headers)))
  return error(
    `The Hub answers ${status}${message === '' ? '' : ` (${message})`} for ${id}.`,
    status >= 500
      ? 'It has trouble of its own: try again later. What was fetched so far is kept.'
      : 'Check HF_ENDPOINT, and whether a proxy stands between.',
  )
}

/** What to do about a limit of requests. */
export const waitHint = (milliseconds: number | undefined): string =>
  `Try again ${milliseconds === undefined ? 'later' : `in ${formatDuration(milliseconds / 1000)}`}; what was fetched so far is kept.${' With a token (HF_TOKEN) the limit is higher.'}`

const unreachableCodes = new Set(['ENOTFOUND', 'ECONNREFUSED', 'EAI_AGAIN', 'ENETUNREACH', 'EHOSTUNREACH', 'ENETDOWN'])

/** The innermost system error code of a failed request. */
function systemCode(error: unknown): string {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    const { code } = at as { code?: unknown }
    if (typeof code === 'string') return code
    if (at instanceof AggregateError && at.errors.length > 0) return systemCode(at.errors[0])
  }
  return ''
}

/** A failed connection: an error that waiting will not mend (certificates), else a transient one. */
export function connectionError(error: unknown, host: string): UnslothError | TransientError {
  if (error instanceof UnslothError || error instanceof TransientError) return error
  const code = systemCode(error)
  if (/CERT|SELF_SIGNED|UNABLE_TO_VERIFY|SSL|TLS/.test(code))
    return new UnslothError('HUB', `The certificate of ${host} is not trusted (${code}).`, {
      hint: 'Behind a proxy that opens connections, name its certificate in NODE_EXTRA_CA_CERTS.',
      cause: error,
    })
  const what = unreachableCodes.has(code)
    ? `${host} cannot be reached (${code})`
    : `the connection to ${host} broke${code === '' ? '' : ` (${code})`}`
  return new TransientError(what, { unreachable: unreachableCodes.has(code), cause: error })
}
