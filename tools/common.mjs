import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { delimiter, dirname, join, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = dirname(dirname(fileURLToPath(import.meta.url)))
export const windows = process.platform === 'win32'

/** A build that cannot go on, told in one message and what to do about it. */
export class BuildError extends Error {
  constructor(message, hint) {
    super(message)
    this.hint = hint
  }
}

/** The full path of the first of these programs that stands on PATH (or is a path itself). */
export function findProgram(...names) {
  const extensions = windows ? (process.env.PATHEXT ?? '.EXE;.CMD;.BAT').split(';') : ['']
  for (const name of names) {
    const folders = name.includes('/') || name.includes(sep) ? [''] : (process.env.PATH ?? '').split(delimiter)
    for (const folder of folders) {
      for (const extension of extensions) {
        const path = (folder === '' ? name : join(folder, name)) + extension
        try {
          accessSync(path, constants.X_OK)
          if (statSync(path).isFile()) return path
        } catch {
          // Not in this folder.
        }
      }
    }
  }
  return undefined
}

/** Runs a program to its end; what it printed is shown when it fails, or as it comes with `show`. */
export function run(program, args, { show = false, what = program, ...options } = {}) {
  const result = spawnSync(program, args, {
    cwd: root,
    stdio: show ? 'inherit' : ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    ...options,
  })
  if (result.error !== undefined) throw new BuildError(`${what} could not be started: ${result.error.message}`)
  if (result.status !== 0) {
    if (!show) process.stderr.write(`${result.stdout}${result.stderr}`)
    throw new BuildError(`${what} failed${result.signal === null ? ` with status ${result.status}` : `: ${result.signal}`}.`)
  }
  return result.stdout ?? ''
}

/** What a program prints, or undefined when it fails. */
export function tryRun(program, args) {
  const { status, stdout } = spawnSync(program, args, { encoding: 'utf8' })
  return status === 0 ? stdout : undefined
}

/** All files below a folder, sorted, as paths from the root. */
export function filesBelow(folder) {
  const files = []
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) files.push(...filesBelow(path))
    else if (entry.isFile()) files.push(path)
  }
  return files.sort()
}

/** A digest of the contents and names of files, and of some texts. */
export function digest(files, ...texts) {
  const hash = createHash('sha256')
  for (const file of files) hash.update(`\0${file.replaceAll(sep, '/')}\0`).update(readFileSync(join(root, file)))
  for (const text of texts) hash.update(`\0${text}`)
  return hash.digest('hex')
}

const stampOf = (output) => join(root, `${output}.stamp`)

/** Whether `output` stands there, made from what `key` is a digest of. */
export function isCurrent(output, key) {
  return existsSync(join(root, output)) && existsSync(stampOf(output)) && readFileSync(stampOf(output), 'utf8') === key
}

/** Remembers what `output` was made from. */
export const markCurrent = (output, key) => writeFileSync(stampOf(output), key)

/** Prints a line on what the build does. */
export const say = (text) => console.log(text)

export const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`
