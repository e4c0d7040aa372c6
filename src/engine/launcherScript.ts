import type { EngineLocation } from './location.ts'

const quoted = (text: string): string => `'${text.replaceAll("'", String.raw`'\''`)}'`

/** The script by which terminals start the engine with the editor's runtime. */
export function launcherScript(
  { execPath, entry, env }: EngineLocation,
  windows = process.platform === 'win32',
): { readonly name: string; readonly text: string } {
  const settings = Object.entries(env)
  if (windows) {
    const lines = [
      '@echo off',
      'setlocal',
      ...settings.map(([name, value]) => `set "${name}=${value}"`),
      `"${execPath}" "${entry}" %*`,
    ]
    return { name: 'unsloth.cmd', text: `${lines.join('\r\n')}\r\n` }
  }
  const assignments = settings.map(([name, value]) => `${name}=${quoted(value)} `).join('')
  return { name: 'unsloth', text: `#!/bin/sh\n${assignments}exec ${quoted(execPath)} ${quoted(entry)} "$@"\n` }
}
