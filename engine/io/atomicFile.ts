import { createHash, randomBytes } from 'node:crypto'
import { readdir, realpath, stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { nodeFileSystem, writeError, type FileSystem } from './fileSystem.ts'

/**
 * Files and folders that are always whole. Everything is written beside its place as `name.partial-<pid>-<tag>`, synced, and
 * renamed. Replacing a folder takes two renames, with the complete states `name.new-…` and `name.old-…` in between, from
 * which `cleanPartials` recovers; tag = 4 hex digits of the host's name, 6 random ones.
 */

type Stage = 'partial' | 'new' | 'old'
const leftover = /^(.+)\.(partial|new|old)-(\d+)-([0-9a-f]{4})[0-9a-f]{6}$/
const hostTag = createHash('sha256').update(hostname()).digest('hex').slice(0, 4)
const inUse = new Set<string>()

/** A name beside `path` that marks unfinished work of this process; give it back with `releaseTemporary`. */
export function temporaryBeside(path: string): string {
  const name = `${path}.partial-${process.pid}-${hostTag}${randomBytes(3).toString('hex')}`
  inUse.add(name)
  return name
}

/** The work under this name is finished or gone. */
export function releaseTemporary(name: string): void {
  inUse.delete(name)
}

const atStage = (temporary: string, stage: Stage): string => temporary.replace(/\.partial-([^.]*)$/, `.${stage}-$1`)

async function isPresent(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  )
}

/**
 * Replaces the content of a file in one step: readers see the old or the new content, also after a crash or on a full disk.
 * A symbolic link stays, and the file it points to is replaced; permissions are kept.
 */
export async function writeFileAtomic(
  path: string,
  data: string | Uint8Array,
  options: { mode?: number; fs?: FileSystem } = {},
): Promise<void> {
  const fs = options.fs ?? nodeFileSystem
  const target = await realpath(path).catch(() => path)
  const previous = await stat(target).catch(() => undefined)
  const bytes = typeof data === 'string' ? Buffer.from(data, 'utf8') : data
  const temporary = temporaryBeside(target)
  try {
    const file = await fs.create(temporary, options.mode ?? (previous === undefined ? undefined : previous.mode & 0o777))
    try {
      await file.write(bytes, 0)
      await file.sync()
    } finally {
      await file.close()
    }
    await fs.rename(temporary, target)
    await fs.sync(dirname(target))
  } catch (error) {
    await fs.remove(temporary).catch(() => undefined)
    throw await writeError(error, path, fs, bytes.length)
  } finally {
    releaseTemporary(temporary)
  }
}

async function syncTree(folder: string, fs: FileSystem): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) await syncTree(path, fs)
    else if (entry.isFile()) await fs.sync(path)
  }
  await fs.sync(folder)
}

/** Puts the complete folder `temporary` in place of `path`. */
async function swapFolders(temporary: string, path: string, fs: FileSystem): Promise<void> {
  if (!(await isPresent(path))) return fs.rename(temporary, path)
  const fresh = atStage(temporary, 'new')
  const old = atStage(temporary, 'old')
  await fs.rename(temporary, fresh)
  try {
    await fs.rename(path, old)
    try {
      await fs.rename(fresh, path)
    } catch (error) {
      await fs.rename(old, path)
      throw error
    }
  } catch (error) {
    await fs.remove(fresh).catch(() => undefined)
    throw error
  }
  await fs.sync(dirname(path))
  // The new folder is in place: a failure to tidy up is no failure to save, and cleanPartials tries again.
  await fs.remove(old).catch(() => undefined)
}

/**
 * Writes a folder in one step: `fill` writes into the temporary folder it is given; then all of it is synced and takes the
 * place of `path`. When `fill` fails nothing remains of it and what was there stays.
 */
export async function writeFolderAtomic<T>(
  path: string,
  fill: (folder: string) => Promise<T>,
  options: { fs?: FileSystem } = {},
): Promise<T> {
  const fs = options.fs ?? nodeFileSystem
  const temporary = temporaryBeside(path)
  const io = async (work: Promise<void>): Promise<void> => {
    try {
      await work
    } catch (error) {
      throw await writeError(error, path, fs)
    }
  }
  try {
    await io(fs.makeFolder(temporary))
    const result = await fill(temporary)
    await io(syncTree(temporary, fs))
    await io(swapFolders(temporary, path, fs))
    await io(fs.sync(dirname(path)))
    return result
  } catch (error) {
    await fs.remove(temporary).catch(() => undefined)
    throw error
  } finally {
    releaseTemporary(temporary)
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

const dayMs = 24 * 3600 * 1000
const minuteMs = 60 * 1000

/** A leftover is abandoned when its writer is gone; where that cannot be known, when it has not changed for long. */
async function isAbandoned(path: string, stage: Stage, pid: number, host: string): Promise<boolean> {
  const info = await stat(path).catch(() => undefined)
  if (info === undefined) return false
  const quiet = Date.now() - Math.max(info.mtimeMs, info.ctimeMs)
  // Swapping takes milliseconds, so these are abandoned even if the process id is in use again.
  if (stage !== 'partial' && quiet > minuteMs) return true
  if (host !== hostTag) return quiet > dayMs
  const original = path.replace(/\.(?:new|old)-([^.]*)$/, '.partial-$1')
  return pid === process.pid ? !inUse.has(original) : !isRunning(pid)
}

export interface CleanResult {
  readonly removed: readonly string[]
  /** Folders put back in place after a crash between the two renames of a replacement. */
  readonly restored: readonly string[]
}

/** Removes what crashed writers left in `folder` and completes interrupted replacements. Work in progress is not touched. */
export async function cleanPartials(folder: string, options: { fs?: FileSystem } = {}): Promise<CleanResult> {
  const fs = options.fs ?? nodeFileSystem
  const removed: string[] = []
  const restored: string[] = []
  const found: { path: string; target: string; stage: Stage }[] = []
  for (const name of await readdir(folder).catch(() => [] as string[])) {
    const [, base, stage, pid, host] = leftover.exec(name) ?? []
    if (base === undefined) continue
    const path = join(folder, name)
    if (await isAbandoned(path, stage as Stage, Number(pid), host!))
      found.push({ path, target: join(folder, base), stage: stage as Stage })
  }
  // `new` is complete and later than `old`: it is the better one to put back.
  const order: Stage[] = ['new', 'old', 'partial']
  found.sort((a, b) => order.indexOf(a.stage) - order.indexOf(b.stage))
  for (const { path, target, stage } of found) {
    try {
      if (stage !== 'partial' && !(await isPresent(target))) {
        await fs.rename(path, target)
        restored.push(basename(target))
      } else {
        await fs.remove(path)
        removed.push(basename(path))
      }
    } catch (error) {
      throw await writeError(error, path, fs)
    }
  }
  if (found.length > 0) await fs.sync(folder)
  return { removed, restored }
}
