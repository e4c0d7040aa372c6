// The VS Code to test in: the one that is downloaded by @vscode/test-electron, or code-server where its host cannot be reached.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { BuildError, findProgram, say } from '../../../tools/common.mjs'
import { canInstall, installCommand, installDebian } from '../../../tools/debian.mjs'
import { cacheRoot, installHost } from './install.mjs'

/** The same version on both routes; code-server 4.139.1 carries it. */
const version = '1.139.1'

/** Milliseconds of silence after which the download host counts as not reachable. */
const patience = 10_000

/** What Electron needs on a Linux without a desktop, as a test for each Debian package. */
const needs = [
  { debian: 'xvfb', found: () => hasDisplay() || findProgram('xvfb-run') !== undefined },
  { debian: 'xauth', found: () => hasDisplay() || findProgram('xauth') !== undefined },
  ...[
    ['libnss3', 'libnss3.so'],
    ['libgtk-3-0', 'libgtk-3.so.0'],
    ['libgbm1', 'libgbm.so.1'],
    ['libasound2', 'libasound.so.2'],
    ['libxkbfile1', 'libxkbfile.so.1'],
  ].map(([debian, library]) => ({
    debian,
    found: () =>
      ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib64', '/usr/lib'].some((folder) =>
        existsSync(join(folder, library)),
      ),
  })),
]

const hasDisplay = () => Boolean(process.env.DISPLAY || process.env.WAYLAND_DISPLAY)

function installNeeds() {
  if (process.platform !== 'linux') return
  const missing = needs.filter(({ found }) => !found()).map(({ debian }) => debian)
  if (missing.length === 0) return
  if (!canInstall())
    throw new BuildError(`VS Code needs ${missing.join(', ')}.`, `Install them, for example with: ${installCommand(missing)}`)
  installDebian(missing)
}

async function desktop() {
  const { downloadAndUnzipVSCode } = createRequire(import.meta.url)('@vscode/test-electron')
  const executable = await downloadAndUnzipVSCode({
    version,
    cachePath: join(cacheRoot(), 'desktop'),
    timeout: patience,
    reporter: { report() {}, error() {} },
  })
  installNeeds()
  const screen =
    process.platform === 'linux' && !hasDisplay() ? [findProgram('xvfb-run'), '-a', '--server-args=-screen 0 1400x900x24'] : []
  return { kind: 'desktop', command: [...screen, executable] }
}

function codeServer() {
  installHost()
  return { kind: 'code-server' }
}

const routes = { desktop, 'code-server': codeServer }
const told = ({ message, hint }) => (hint === undefined ? message : `${message} ${hint}`)

/**
 * `{ kind: 'desktop', command }` or `{ kind: 'code-server' }`, installed. UNSLOTH_EDITOR names the route; otherwise the download is
 * tried first. Throws a BuildError with both reasons when neither works.
 */
export async function chooseEditor() {
  const asked = process.env.UNSLOTH_EDITOR
  if (asked !== undefined && routes[asked] === undefined)
    throw new BuildError(`UNSLOTH_EDITOR is ${asked}.`, `Use ${Object.keys(routes).join(' or ')}.`)
  const reasons = []
  for (const [name, route] of Object.entries(routes).filter(([name]) => asked === undefined || name === asked)) {
    try {
      return await route()
    } catch (error) {
      reasons.push(`${name}: ${told(error)}`)
      if (asked === undefined && name === 'desktop')
        say(`VS Code ${version} cannot be used here (${told(error)}); code-server is.`)
    }
  }
  throw new BuildError(`There is no VS Code to test in. ${reasons.join(' ')}`)
}

/** Undefined when there is a VS Code to test in (it is installed when it can be), else why there is none. */
export async function missingEditor() {
  try {
    await chooseEditor()
    return undefined
  } catch (error) {
    if (!(error instanceof BuildError)) throw error
    return told(error)
  }
}
