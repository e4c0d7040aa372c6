import { readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'

/** Where the Hub is, where its files are kept, and what may be done, by the variables that the Python libraries heed. */
export interface HubSettings {
  /** Without a slash at the end. */
  readonly endpoint: string
  /** Folder with `models--org--name` and its like. */
  readonly cache: string
  /** Only what is in the cache. */
  readonly offline: boolean
  /** For this Hub alone: sent to no other host, written nowhere. */
  readonly token: string | undefined
  /** Milliseconds without a byte after which a connection is given up. */
  readonly stallTimeout: number
  /** Milliseconds before the first new attempt; doubled with each. */
  readonly retryDelay: number
}

const isTrue = (value: string | undefined): boolean => /^(?:1|true|yes|on)$/i.test(value?.trim() ?? '')

const given = (value: string | undefined): string | undefined =>
  value === undefined || value.trim() === '' ? undefined : value.trim()

const expand = (path: string): string => (path === '~' || /^~[/\\]/.test(path) ? join(homedir(), path.slice(1)) : path)

function hubHome({ HF_HOME, XDG_CACHE_HOME }: NodeJS.ProcessEnv): string {
  return expand(given(HF_HOME) ?? join(given(XDG_CACHE_HOME) ?? join(homedir(), '.cache'), 'huggingface'))
}

function tokenOf(environment: NodeJS.ProcessEnv): string | undefined {
  const named = ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN']
    .map((name) => [name, given(environment[name])] as const)
    .find(([, value]) => value !== undefined)
  const file = expand(given(environment.HF_TOKEN_PATH) ?? join(hubHome(environment), 'token'))
  const [source, token] = named ?? [file, isTrue(environment.HF_HUB_DISABLE_IMPLICIT_TOKEN) ? undefined : tokenFile(file)]
  // A header cannot carry anything else; the text itself is never shown.
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token))
    throw new UnslothError(
      'HUB',
      `${source} holds no access token: there are spaces, line ends or letters that a token cannot have.`,
      { hint: 'Make a token at https://huggingface.co/settings/tokens and copy it whole.' },
    )
  return token
}

function tokenFile(path: string): string | undefined {
  try {
    return given(readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}

function endpointOf(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '')
    throw new UnslothError(
      'HUB',
      `HF_ENDPOINT is ${JSON.stringify(text.replace(/\/\/[^/@]*@/, '//…@'))}, which is no address of a Hub.`,
      { hint: 'Give an address such as https://huggingface.co, without a user or password.' },
    )
  return `${url.origin}${url.pathname}`.replace(/\/+$/, '')
}

/** Folder of the Hub's cache, the same as that of the Python libraries. */
export function hubCacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  return expand(given(environment.HF_HUB_CACHE) ?? given(environment.HUGGINGFACE_HUB_CACHE) ?? join(hubHome(environment), 'hub'))
}

/** The settings of this process. */
export function hubSettings(environment: NodeJS.ProcessEnv = process.env): HubSettings {
  const seconds = Number(environment.HF_HUB_DOWNLOAD_TIMEOUT)
  return {
    endpoint: endpointOf(given(environment.HF_ENDPOINT) ?? 'https://huggingface.co'),
    cache: hubCacheFolder(environment),
    offline: isTrue(environment.HF_HUB_OFFLINE) || isTrue(environment.TRANSFORMERS_OFFLINE),
    token: tokenOf(environment),
    stallTimeout: seconds > 0 ? seconds * 1000 : 30_000,
    retryDelay: 500,
  }
}
