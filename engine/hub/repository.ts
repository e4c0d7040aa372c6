import { UnslothError } from '#shared/errors.ts'

/** A repository of the Hub, at a branch, tag or commit. */
export interface Repository {
  readonly type: 'model' | 'dataset'
  /** `org/name`; some of the oldest have no organisation. */
  readonly id: string
  readonly revision: string
}

const part = '\\w(?:[\\w.-]*\\w)?'
const idPattern = new RegExp(`^(?:${part}/)?${part}$`)
const revisionPattern = /^[^\s~^:?*[\\\p{Cc}]{1,256}$/u

const isId = (id: string): boolean => id.length <= 200 && idPattern.test(id) && !/--|\.\./.test(id) && !id.endsWith('.git')
const isRevision = (text: string): boolean => revisionPattern.test(text) && !text.includes('..') && !/^\/|\/$|\/\/|@\{/.test(text)

/** A full commit: what it names never changes. */
export const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision)

/** The repository of `org/name` or `org/name@revision`; undefined when the text cannot be one. */
export function parseRepository(type: Repository['type'], name: string, revision?: string | null): Repository | undefined {
  const at = name.indexOf('@')
  const id = at < 0 ? name : name.slice(0, at)
  const named = at < 0 ? undefined : name.slice(at + 1)
  if (!isId(id)) return undefined
  const asked = revision ?? named ?? 'main'
  if (!isRevision(asked))
    throw new UnslothError('HUB', `${id}: ${JSON.stringify(asked)} is no revision.`, {
      hint: 'Give a branch, a tag or a commit, such as main or refs/pr/1.',
    })
  return { type, id, revision: asked }
}

/** `a model`, `a data set`, for messages. */
export const kindOf = ({ type }: Pick<Repository, 'type'>): string => (type === 'model' ? 'model' : 'data set')

/** Path of the repository below an endpoint, for people and for files. */
export const webPath = ({ type, id }: Pick<Repository, 'type' | 'id'>): string => (type === 'model' ? id : `datasets/${id}`)

/** Its folder in the cache. */
export const folderName = ({ type, id }: Pick<Repository, 'type' | 'id'>): string => `${type}s--${id.replace('/', '--')}`

/** The repository that a path inside a cache folder belongs to: of `…/models--org--name/snapshots/<commit>`, `org/name` and the commit. */
export function snapshotOrigin(path: string): Repository | undefined {
  const [, type, name, commit] = /[/\\](model|dataset)s--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$/.exec(path) ?? []
  if (name === undefined || commit === undefined) return undefined
  const id = name.replace('--', '/')
  return isId(id) ? { type: type as Repository['type'], id, revision: commit } : undefined
}
