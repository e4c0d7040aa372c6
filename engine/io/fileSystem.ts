import { mkdir, open, rename, rm, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'

/** A file being written. */
export interface OutputFile {
  /** Writes all of `data` at the byte `position`. */
  write(data: Uint8Array, position: number): Promise<void>
  /** Returns when the data is on the disk. */
  sync(): Promise<void>
  close(): Promise<void>
}

/** What writers need of a file system; tests put one with a full disk or a failing device in its place. */
export interface FileSystem {
  /** Creates the file or empties it; `mode` is set whatever the umask. */
  create(path: string, mode?: number): Promise<OutputFile>
  rename(from: string, to: string): Promise<void>
  /** Removes a file or a whole folder; a missing one is no error. */
  remove(path: string): Promise<void>
  makeFolder(path: string): Promise<void>
  /** Makes a file's content, or the names in a folder, durable. */
  sync(path: string): Promise<void>
  /** Bytes that this user can still write; undefined when the file system does not tell. */
  freeBytes(folder: string): Promise<number | undefined>
}

const codeOf = (error: unknown): string => {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : ''
}

/** Windows cannot open a folder or sync what is open for reading, and some network file systems refuse, too. */
const syncUnsupported = new Set(['EPERM', 'EACCES', 'EISDIR', 'EINVAL', 'ENOTSUP', 'EBADF'])

/** The real one. */
export const nodeFileSystem: FileSystem = {
  async create(path, mode) {
    const handle = await open(path, 'w', mode ?? 0o666)
    if (mode !== undefined) await handle.chmod(mode)
    return {
      async write(data, position) {
        let done = 0
        while (done < data.length) {
          const { bytesWritten } = await handle.write(data, done, Math.min(data.length - done, 1 << 30), position + done)
          if (bytesWritten === 0) throw Object.assign(new Error('the device accepts no more data'), { code: 'ENOSPC' })
          done += bytesWritten
        }
      },
      sync: () => handle.sync(),
      close: () => handle.close(),
    }
  },
  rename,
  remove: (path) => rm(path, { recursive: true, force: true }),
  async makeFolder(path) {
    await mkdir(path, { recursive: true })
  },
  async sync(path) {
    try {
      const handle = await open(path, 'r')
      try {
        await handle.sync()
      } finally {
        await handle.close()
      }
    } catch (error) {
      if (!syncUnsupported.has(codeOf(error))) throw error
    }
  },
  async freeBytes(folder) {
    try {
      const { bavail, bsize, blocks } = await statfs(folder)
      return blocks === 0 ? undefined : bavail * bsize
    } catch {
      return undefined
    }
  },
}

/** Any failure to read `path` as an UnslothError; `what` names the kind of file for people. */
export function readError(error: unknown, path: string, what: string): UnslothError {
  if (error instanceof UnslothError) return error
  const code = codeOf(error)
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return new UnslothError('FILE_NOT_FOUND', `${path}: no such file.`, { hint: `Check the path of the ${what}.`, cause: error })
  if (code === 'EISDIR')
    return new UnslothError('FILE_FORMAT', `${path}: a folder, where a file is expected.`, {
      hint: `Give the path of the ${what}.`,
      cause: error,
    })
  if (code === 'EACCES' || code === 'EPERM')
    return new UnslothError('FILE_NOT_FOUND', `${path}: no permission to read it.`, {
      hint: 'Change its permissions or run as another user.',
      cause: error,
    })
  if (code === 'ERR_INVALID_ARG_VALUE')
    return new UnslothError('FILE_NOT_FOUND', `${JSON.stringify(path)}: not a possible path.`, { cause: error })
  return new UnslothError('FILE_FORMAT', `${path}: could not be read: ${(error as Error).message}.`, {
    hint: 'Check the disk or the network drive.',
    cause: error,
  })
}

function writeFailure(
  code: string,
  error: unknown,
  folder: string,
  free: number | undefined,
  needed: number | undefined,
): [what: string, hint: string] {
  const room = free === undefined ? '' : ` ${formatBytes(free)} are free in ${folder}.`
  const want = needed === undefined ? '' : ` ${formatBytes(needed)} are needed.`
  switch (code) {
    case 'ENOSPC':
      return ['the disk is full', `Free some space or choose a folder on another disk.${want}${room}`]
    case 'EDQUOT':
      return ['your disk quota is used up', `Delete files you no longer need or choose a folder on another disk.${want}`]
    case 'EFBIG':
      return [
        'the file system or a process limit does not allow a file of this size',
        'Use smaller shards (save.max_shard_size), or another disk.',
      ]
    case 'EACCES':
    case 'EPERM':
      return ['no permission to write', `Check the permissions of ${folder}, or choose another folder.`]
    case 'EROFS':
      return ['the file system is read-only', 'Choose a folder on a disk that can be written.']
    case 'ENOENT':
    case 'ENOTDIR':
      return ['the folder does not exist', `Create ${folder}, or choose another folder.`]
    case 'EIO':
      return [
        'the device reports an input/output error',
        'Check the disk or the network drive; nothing that was there before has been replaced.',
      ]
    default:
      return [(error as Error).message, 'Nothing that was there before has been replaced.']
  }
}

/** Any failure to write `path` as a FILE_WRITE error with what to do; `needed`: bytes of the whole output. */
export async function writeError(error: unknown, path: string, fs: FileSystem, needed?: number): Promise<UnslothError> {
  if (error instanceof UnslothError) return error
  const folder = dirname(path)
  const code = codeOf(error)
  const free = code === 'ENOSPC' ? await fs.freeBytes(folder).catch(() => undefined) : undefined
  const [what, hint] = writeFailure(code, error, folder, free, needed)
  return new UnslothError('FILE_WRITE', `${path}: could not be written: ${what}.`, { hint, cause: error })
}

/** Fails before the first byte when the disk certainly cannot hold `needed` bytes beside what is there. */
export async function checkFreeSpace(folder: string, needed: number, path: string, fs: FileSystem): Promise<void> {
  const free = await fs.freeBytes(folder)
  if (free === undefined || free >= needed) return
  throw await writeError(Object.assign(new Error('not enough space'), { code: 'ENOSPC' }), path, fs, needed)
}
