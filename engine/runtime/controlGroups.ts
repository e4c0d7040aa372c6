import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Reads a small file of /proc or /sys; undefined when it is not there. */
export type ReadText = (path: string) => string | undefined

export const readText: ReadText = (path) => {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return undefined
  }
}

export interface ControlGroup {
  readonly folder: string
  readonly version: 1 | 2
}

/**
 * The folders in which Linux keeps the limits of a controller ("cpu", "memory") for this process, from its own control group up
 * to the root: a container's limits stand in one of them. None on other systems.
 */
export function* controlGroups(controller: string, read: ReadText = readText): Generator<ControlGroup> {
  for (const line of (read('/proc/self/cgroup') ?? '').split('\n')) {
    const match = /^\d+:([^:]*):(\/.*)$/.exec(line)
    if (match === null) continue
    const controllers = match[1]!
    const version = controllers === '' ? 2 : 1
    if (version === 1 && !controllers.split(',').includes(controller)) continue
    const mount = join('/sys/fs/cgroup', controllers)
    for (let path = match[2]!; ; path = dirname(path)) {
      yield { folder: join(mount, path), version }
      if (path === '/') break
    }
  }
}
