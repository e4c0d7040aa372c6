import { constants } from 'node:fs'
import { copyFile, link, lstat, mkdir, readFile, readdir, rm, stat, statfs, symlink } from 'node:fs/promises'
import { dirname, join, relative, sep } from 'node:path'
import * as z from 'zod'
import { UnslothError } from '#shared/errors.ts'
import { releaseTemporary, temporaryBeside, writeFileAtomic } from '../io/atomicFile.ts'
import { nodeFileSystem, writeError, type FileSystem } from '../io/fileSystem.ts'
import { folderName, isCommit, type Repository } from './repository.ts'

/** A file of a repository at one commit. */
export interface HubFile {
  /** With slashes, below the repository. */
  readonly path: string
  readonly size: number
  /** Name of its blob: the SHA-256 of a large file (LFS), else git's SHA-1. Empty where only the cache is known. */
  readonly oid: string
}

const listingSchema = z.array(z.object({ path: z.string(), size: z.number().int().nonnegative(), oid: z.string() }))

/** Whether a path from a listing stays inside its folder, on every system. */
export const isSafePath = (path: string): boolean =>
  path !== '' &&
  path.length < 1000 &&
  !/[\\:\0]/.test(path) &&
  path.split('/').every((part) => part !== '' && part !== '.' && part !== '..')

/** `undefined` for a missing file; other failures are thrown. */
async function optional<T>(work: Promise<T>): Promise<T | undefined> {
  return work.catch((error: unknown) => {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined
    throw error
  })
}

/**
 * One repository in the cache that the Python libraries use, too: `blobs/<hash>`, `snapshots/<commit>/<path>` linked to them, and
 * `refs/<branch>` with the commit that it stood for. Beside these, `listings/<commit>.json` says which files a commit has, so that
 * a cached commit is known to be complete without asking.
 */
export class RepositoryCache {
  readonly repository: Repository
  readonly folder: string
  /** Of the locks on blobs; beside the repositories, as the Python libraries have it. */
  readonly lockFolder: string
  readonly fs: FileSystem

  constructor(root: string, repository: Repository, fs: FileSystem = nodeFileSystem) {
    this.repository = repository
    this.folder = join(root, folderName(repository))
    this.lockFolder = join(root, '.locks', folderName(repository))
    this.fs = fs
  }

  blobPath(oid: string): string {
    return join(this.folder, 'blobs', oid)
  }

  snapshotFolder(commit: string): string {
    return join(this.folder, 'snapshots', commit)
  }

  path(commit: string, file: string): string {
    return join(this.snapshotFolder(commit), ...file.split('/'))
  }

  /** The commit that the revision stood for when it was last asked. */
  async commit(): Promise<string | undefined> {
    const { revision } = this.repository
    const text = (await optional(readFile(join(this.folder, 'refs', ...revision.split('/')), 'utf8')))?.trim()
    if (text !== undefined && isCommit(text)) return text
    if (isCommit(revision)) return revision
    // A short commit.
    if (!/^[0-9a-f]{7,39}$/.test(revision)) return undefined
    const found = ((await optional(readdir(join(this.folder, 'snapshots')))) ?? []).filter((name) => name.startsWith(revision))
    return found.length === 1 ? found[0] : undefined
  }

  async rememberCommit(commit: string): Promise<void> {
    const { revision } = this.repository
    if (revision !== commit) await this.write(join('refs', ...revision.split('/')), commit)
  }

  private async write(name: string, text: string): Promise<void> {
    const path = join(this.folder, name)
    if ((await optional(readFile(path, 'utf8')))?.trim() === text) return
    await this.makeFolder(dirname(path))
    await writeFileAtomic(path, text, { fs: this.fs })
  }

  async makeFolder(path: string): Promise<void> {
    try {
      await mkdir(path, { recursive: true })
    } catch (error) {
      throw await writeError(error, path, this.fs)
    }
  }

  /** All files of the commit; undefined when that was never asked. */
  async listing(commit: string): Promise<HubFile[] | undefined> {
    const text = await optional(readFile(join(this.folder, 'listings', `${commit}.json`), 'utf8'))
    if (text === undefined) return undefined
    try {
      return listingSchema.parse(JSON.parse(text)).filter(({ path }) => isSafePath(path))
    } catch {
      return undefined
    }
  }

  async rememberListing(commit: string, files: readonly HubFile[]): Promise<void> {
    await this.write(join('listings', `${commit}.json`), JSON.stringify(files))
  }

  /** The files of the commit that are there, whoever fetched them. */
  async filesPresent(commit: string): Promise<HubFile[]> {
    const root = this.snapshotFolder(commit)
    const entries = (await optional(readdir(root, { recursive: true, withFileTypes: true }))) ?? []
    const files: HubFile[] = []
    for (const entry of entries) {
      const path = join(entry.parentPath, entry.name)
      const info = await optional(stat(path))
      if (info?.isFile() === true) files.push({ path: relative(root, path).split(sep).join('/'), size: info.size, oid: '' })
    }
    return files
  }

  /** Whether the snapshot has the whole file. */
  async has(commit: string, { path, size }: HubFile): Promise<boolean> {
    return (await optional(stat(this.path(commit, path))))?.size === size
  }

  /** Whether the blob is there, whole. Blobs are checked when they are fetched, so the size is enough. */
  async hasBlob({ oid, size }: HubFile): Promise<boolean> {
    return (await optional(stat(this.blobPath(oid))))?.size === size
  }

  /** Bytes that the disk of the cache can still take. */
  async freeBytes(): Promise<number | undefined> {
    for (let folder = this.folder; ; folder = dirname(folder)) {
      if ((await statfs(folder).catch(() => undefined)) !== undefined) return this.fs.freeBytes(folder)
      if (folder === dirname(folder)) return undefined
    }
  }

  /** Puts the blob into the snapshot: as a relative link; where links are not allowed as a second name, or as a copy. */
  async linkFile(commit: string, file: HubFile): Promise<void> {
    if (await this.has(commit, file)) return
    const path = this.path(commit, file.path)
    const blob = this.blobPath(file.oid)
    await this.makeFolder(dirname(path))
    const temporary = temporaryBeside(path)
    try {
      await symlink(relative(dirname(path), blob), temporary)
        .catch(() => link(blob, temporary))
        .catch(() => copyFile(blob, temporary, constants.COPYFILE_FICLONE))
      if ((await lstat(path).catch(() => undefined))?.isDirectory() === true)
        throw new UnslothError('HUB', `${path}: a folder, where a file of ${this.repository.id} belongs.`, {
          hint: 'Remove the folder.',
        })
      await this.fs.rename(temporary, path)
    } catch (error) {
      await rm(temporary, { force: true })
      throw await writeError(error, path, this.fs)
    } finally {
      releaseTemporary(temporary)
    }
  }
}
