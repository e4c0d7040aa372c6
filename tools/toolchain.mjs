import { existsSync } from 'node:fs'
import { BuildError, findProgram, run, windows } from './common.mjs'
import { canInstall, installCommand, installDebian } from './debian.mjs'

/** Tools of the build: the programs that can play the part, and the Debian package that brings one. */
const parts = [
  { programs: ['cmake'], debian: 'cmake', fedora: 'cmake', brew: 'cmake' },
  {
    programs: windows ? ['ninja', 'msbuild', 'nmake'] : ['ninja', 'make', 'gmake'],
    debian: 'ninja-build',
    fedora: 'ninja-build',
    brew: 'ninja',
  },
  {
    programs: windows ? ['cl', 'clang-cl', 'g++', 'clang++'] : ['g++', 'clang++', 'c++'],
    debian: 'g++',
    fedora: 'gcc-c++',
    brew: undefined,
    compiler: true,
  },
]

const found = ({ programs, compiler }) => {
  const chosen = compiler ? process.env.CXX?.trim() : undefined
  return findProgram(...(chosen ? [chosen.split(/\s+/)[0]] : programs))
}

function advice(missing) {
  const list = (key) =>
    missing
      .map((part) => part[key])
      .filter(Boolean)
      .join(' ')
  if (process.platform === 'darwin') {
    const compiler = missing.some((part) => part.compiler)
    return [compiler ? 'xcode-select --install' : '', list('brew') === '' ? '' : `brew install ${list('brew')}`]
      .filter(Boolean)
      .join(' && ')
  }
  if (windows)
    return 'winget install Kitware.CMake Ninja-build.Ninja Microsoft.VisualStudio.2022.BuildTools, then open a developer prompt'
  if (findProgram('apt-get') !== undefined || existsSync('/etc/debian_version'))
    return installCommand(missing.map(({ debian }) => debian))
  if (findProgram('dnf') !== undefined) return `sudo dnf install ${list('fedora')}`
  if (findProgram('pacman') !== undefined)
    return `sudo pacman -S ${list('fedora').replace('gcc-c++', 'gcc').replace('-build', '')}`
  if (findProgram('apk') !== undefined) return 'sudo apk add cmake samurai g++ linux-headers'
  return `Install ${list('debian')}.`
}

/**
 * The tools that compile the addon. On Debian and its kin, root gets what is missing installed; everyone else is told the one
 * command to type.
 */
export function toolchain() {
  let missing = parts.filter((part) => found(part) === undefined)
  const chosen = process.env.CXX?.trim()
  if (chosen && missing.some((part) => part.compiler))
    throw new BuildError(`The compiler of the environment variable CXX was not found: ${chosen}`, 'Correct CXX, or unset it.')
  if (missing.length > 0 && canInstall()) {
    installDebian(missing.map(({ debian }) => debian))
    missing = parts.filter((part) => found(part) === undefined)
  }
  if (missing.length > 0) {
    const names = missing.map(({ programs }) => (programs[0] === 'ninja' ? 'ninja or make' : programs.slice(0, 2).join(' or ')))
    throw new BuildError(
      `To compile the engine, this machine needs ${names.join(', ')}. Type this, then run the same command again:\n`,
      advice(missing),
    )
  }
  const [cmake, builder, compiler] = parts.map(found)
  return { cmake, ninja: /ninja(\.exe)?$/i.test(builder), compiler }
}

const oldest = { cmake: [3, 22], 'g++': [11], 'clang++': [14] }

/** Fails when a tool is older than the sources need (C++20; AMX intrinsics in GCC 11). */
export function checkVersions({ cmake, compiler }) {
  const check = (name, text, least, hint) => {
    const version = /(\d+)(?:\.(\d+))?/.exec(text)
    if (version === null) return
    const [major, minor] = [Number(version[1]), Number(version[2] ?? 0)]
    if (major > least[0] || (major === least[0] && minor >= (least[1] ?? 0))) return
    throw new BuildError(`${name} ${version[0]} is too old: ${least.join('.')} or newer is needed.`, hint)
  }
  check(
    'CMake',
    run(cmake, ['--version']),
    oldest.cmake,
    'Install a newer one, for example with `pip install cmake` or from cmake.org.',
  )
  const text = run(compiler, windows ? [] : ['--version'])
  if (/Apple clang|Microsoft/.test(text)) return
  const clang = /clang version/.test(text)
  check(
    compiler,
    clang ? text.slice(text.indexOf('version')) : run(compiler, ['-dumpfullversion', '-dumpversion']),
    oldest[clang ? 'clang++' : 'g++'],
    'Install a newer one and name it in the environment variable CXX, for example CXX=g++-12.',
  )
}
