import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

let found: string | undefined

/** The folder that holds package.json, from wherever this module was bundled to. */
export function projectRoot(): string {
  if (found !== undefined) return found
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder)
    if (parent === folder) throw new Error('package.json of the engine was not found')
    folder = parent
  }
  found = folder
  return folder
}

/** The script that starts this program as another process. */
export const engineEntry = (): string => join(projectRoot(), 'engine', 'unsloth.mjs')
