import { homedir } from 'node:os'
import { join } from 'node:path'

/** A file of what was measured on this machine: `${XDG_CACHE_HOME:-~/.cache}/unsloth-vscode/NAME`. */
export function cacheFile(name: string, environment: NodeJS.ProcessEnv = process.env): string {
  const base = environment.XDG_CACHE_HOME
  return join(base !== undefined && base !== '' ? base : join(homedir(), '.cache'), 'unsloth-vscode', name)
}
