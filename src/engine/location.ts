import { existsSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'

/** How to start the engine: `<execPath> <entry> …args` with these additions to the environment. */
export interface EngineLocation {
  readonly execPath: string
  readonly entry: string
  readonly env: Readonly<Record<string, string>>
}

/** Platforms that a package with an addon is made for. */
export const supportedPlatforms: readonly string[] = ['linux-x64']

/**
 * The engine of this extension, run by the editor's own runtime, so that nothing has to be installed. `chosen` is the setting
 * that names another engine's start script.
 */
export function locateEngine(extensionPath: string, chosen: string): EngineLocation {
  if (chosen !== '' && !isAbsolute(chosen)) {
    throw new UnslothError('NATIVE', `The setting unsloth.engine.path must be an absolute path; "${chosen}" is not.`, {
      hint: 'Correct the setting, or clear it to use the engine of the extension.',
    })
  }
  const entry = chosen === '' ? join(extensionPath, 'engine', 'unsloth.mjs') : chosen
  if (!existsSync(entry)) {
    throw new UnslothError('NATIVE', `The engine is not at ${entry}.`, {
      hint: chosen === '' ? 'Install the extension again.' : 'Correct the setting unsloth.engine.path, or clear it.',
    })
  }
  const env = process.versions.electron === undefined ? {} : { ELECTRON_RUN_AS_NODE: '1' }
  return { execPath: process.execPath, entry, env }
}

/** Why runs cannot start on this machine; undefined when they can. */
export function platformProblem(
  extensionPath: string,
  platform = `${process.platform}-${process.arch}`,
): UnslothError | undefined {
  const addon = ['cuda', 'cpu'].map((kind) => join(extensionPath, 'build', kind, 'kernels.node'))
  if (addon.some((path) => existsSync(path))) return undefined
  const supported = supportedPlatforms.includes(platform)
  return new UnslothError(
    'NATIVE',
    supported ? `The engine's compute part is missing: ${addon.at(-1)}.` : `The engine is not available for ${platform} yet.`,
    {
      hint: supported
        ? 'Install the extension for this platform again.'
        : `Recipes can be edited here. To train, open the folder on one of: ${supportedPlatforms.join(', ')}, for example over Remote-SSH.`,
    },
  )
}
