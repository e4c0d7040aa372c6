import fs from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { errorCode } from './files.ts'

/** The longest path that every system takes for a unix socket (104 bytes on macOS), with room to spare. */
export const socketPathLimit = 100

/** A number on POSIX systems, else the user's name. */
const userKey = (): string => {
  const { uid, username } = userInfo()
  return uid >= 0 ? String(uid) : username.replace(/[^A-Za-z0-9]+/g, '-')
}

/**
 * The folder for sockets and device locks of this user on this machine, made with mode 0700: `$UNSLOTH_RUNTIME_DIR`, a
 * folder in `$XDG_RUNTIME_DIR` (or /run/user/<uid>, so that a login shell and a service agree), or in the temp folder.
 */
export function runtimeFolder(): string {
  const chosen = process.env.UNSLOTH_RUNTIME_DIR
  if (chosen !== undefined && chosen !== '') {
    fs.mkdirSync(dirname(resolve(chosen)), { recursive: true })
    return privateFolder(resolve(chosen))
  }
  for (const parent of [process.env.XDG_RUNTIME_DIR, `/run/user/${userKey()}`]) {
    if (parent === undefined || parent === '' || process.platform === 'win32') continue
    try {
      return privateFolder(join(parent, 'unsloth'))
    } catch {
      // Named, but not there or not ours: the next one.
    }
  }
  return temporaryRuntimeFolder()
}

/** The same in the temp folder, for when the first choice is gone or too long for a socket. */
export function temporaryRuntimeFolder(): string {
  const name = `unsloth-${userKey()}`
  const folder = join(tmpdir(), name)
  return privateFolder(process.platform === 'win32' || folder.length < socketPathLimit - 24 ? folder : join('/tmp', name))
}

/** Makes the folder, or checks that the one there is this user's alone: others could have put it into a shared folder. */
function privateFolder(folder: string): string {
  try {
    fs.mkdirSync(folder, { mode: 0o700 })
  } catch (error) {
    if (errorCode(error) !== 'EEXIST') throw error
  }
  if (process.platform === 'win32') return folder
  const { uid, mode, isFolder } = inspectFolder(folder)
  if (!isFolder || uid !== userInfo().uid) {
    throw new UnslothError('FILE_WRITE', `${folder}: belongs to another user.`, {
      hint: 'Remove it, or set UNSLOTH_RUNTIME_DIR to a folder of your own.',
    })
  }
  if ((mode & 0o077) !== 0) fs.chmodSync(folder, 0o700)
  return folder
}

function inspectFolder(folder: string): { uid: number; mode: number; isFolder: boolean } {
  const found = fs.lstatSync(folder)
  return { uid: found.uid, mode: found.mode, isFolder: found.isDirectory() }
}
