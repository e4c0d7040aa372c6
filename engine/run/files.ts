import fs from 'node:fs'
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'

/** What the writer of a run needs of node:fs; tests put a full disk in its place. */
export type RunFs = Pick<
  typeof fs,
  'openSync' | 'closeSync' | 'writeSync' | 'fsyncSync' | 'ftruncateSync' | 'renameSync' | 'mkdirSync' | 'linkSync' | 'unlinkSync'
>

/** The real one. */
export const nodeFs: RunFs = fs

/** The `code` of a system error: ENOENT, ENOSPC, … */
export const errorCode = (error: unknown): string => {
  const code = (error as { code?: unknown } | null)?.code
  return typeof code === 'string' ? code : ''
}

/** A short text that no other process and no earlier call has. */
export const uniqueSuffix = (): string => randomBytes(6).toString('hex')

const reasons: Readonly<Record<string, readonly [reason: string, hint: string]>> = {
  ENOSPC: ['the disk is full', 'Free some space and resume the run; what was there before is unchanged.'],
  EDQUOT: ['your disk quota is used up', 'Delete files you no longer need and resume; what was there before is unchanged.'],
  EACCES: ['no permission to write', 'Check the permissions of the folder, or choose another output folder.'],
  EPERM: ['no permission to write', 'Check the permissions of the folder, or choose another output folder.'],
  EROFS: ['the file system is read-only', 'Choose an output folder on a disk that can be written.'],
  ENOENT: ['the folder does not exist', 'It may have been deleted or moved; choose another output folder.'],
  ENOTDIR: ['a part of the path is a file, not a folder', 'Choose another output folder.'],
  EIO: ['the device reports an input/output error', 'Check the disk or the network drive.'],
  EMFILE: ['too many open files', 'Raise the limit (ulimit -n).'],
}

/** Any failure to write `path`, as a FILE_WRITE error that says what to do. */
export function fileWriteError(error: unknown, path: string): UnslothError {
  if (error instanceof UnslothError) return error
  const [reason, hint] = reasons[errorCode(error)] ?? [error instanceof Error ? error.message : String(error), undefined]
  const details = hint === undefined ? { cause: error } : { hint, cause: error }
  return new UnslothError('FILE_WRITE', `${path}: could not be written: ${reason}.`, details)
}

/** Writes every byte; a device that takes none is full. */
export function writeFully(disk: RunFs, fd: number, data: Uint8Array, position: number | null): void {
  let done = 0
  while (done < data.length) {
    const written = disk.writeSync(fd, data, done, data.length - done, position === null ? null : position + done)
    if (written === 0) throw Object.assign(new Error('no more data is accepted'), { code: 'ENOSPC' })
    done += written
  }
}

/** Makes renames and new names in the folder durable. Windows and some network file systems cannot, and need not. */
export function syncFolder(disk: RunFs, path: string): void {
  let fd: number
  try {
    fd = disk.openSync(path, 'r')
  } catch {
    return
  }
  try {
    disk.fsyncSync(fd)
  } catch (error) {
    if (['ENOSPC', 'EIO', 'EDQUOT'].includes(errorCode(error))) throw error
  } finally {
    disk.closeSync(fd)
  }
}

/** Renames over an existing file. On Windows a reader or virus scanner can hold the target open for a moment: tried again. */
export function renameOver(disk: RunFs, from: string, to: string): void {
  for (let attempt = 0; ; attempt++) {
    try {
      disk.renameSync(from, to)
      return
    } catch (error) {
      const busy = process.platform === 'win32' && ['EPERM', 'EACCES', 'EBUSY'].includes(errorCode(error))
      if (!busy || attempt >= 20) throw error
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
    }
  }
}

export interface AtomicWriteOptions {
  readonly disk?: RunFs
  /** Permission bits of the new file. */
  readonly mode?: number
  /** False: safe against the death of the process, not of the machine. For small files written often. */
  readonly durable?: boolean
}

/**
 * Puts `text` in the place of the file: a reader sees the old content or the new, at any moment and after any crash.
 * On failure the old file is as it was and a FILE_WRITE error is thrown.
 */
export function writeFileAtomic(path: string, text: string, options: AtomicWriteOptions = {}): void {
  const { disk = nodeFs, mode = 0o666, durable = true } = options
  const beside = temporaryName(path)
  try {
    const fd = disk.openSync(beside, 'wx', mode)
    try {
      writeFully(disk, fd, Buffer.from(text), null)
      if (durable) disk.fsyncSync(fd)
    } finally {
      disk.closeSync(fd)
    }
    renameOver(disk, beside, path)
    if (durable) syncFolder(disk, dirname(path))
  } catch (error) {
    removeQuietly(disk, beside)
    throw fileWriteError(error, path)
  }
}

/** How unfinished files and folders are named. */
export const temporaryPrefix = '.tmp-'

/** A name beside `path` that shows it is unfinished; `sweepTemporaries` finds it when its writer died. */
export const temporaryName = (path: string): string =>
  join(dirname(path), `${temporaryPrefix}${basename(path)}-${uniqueSuffix()}`)

/** Removes what dead writers left in the folder. Only the owner of the folder's lock may call it. */
export function sweepTemporaries(folder: string): void {
  for (const name of readNames(folder)) {
    if (name.startsWith(temporaryPrefix)) fs.rmSync(join(folder, name), { recursive: true, force: true })
  }
}

/** Removes a file whose absence is just as well. */
export function removeQuietly(disk: Pick<RunFs, 'unlinkSync'>, path: string): void {
  try {
    disk.unlinkSync(path)
  } catch {
    // It is gone, or will be swept by the next owner.
  }
}

/** The names in a folder; none when it does not exist. */
export function readNames(folder: string): string[] {
  try {
    return fs.readdirSync(folder)
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR') return []
    throw error
  }
}

/** The JSON value in a file; undefined when there is no such file or it does not parse. */
export function readJson(path: string): unknown {
  try {
    return JSON.parse(fs.readFileSync(path, 'utf8')) as unknown
  } catch {
    return undefined
  }
}

/** This machine's name. */
export const thisHost = (): string => hostname()
