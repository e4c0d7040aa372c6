import { existsSync, mkdirSync, readFileSync, readlinkSync, rmSync, symlinkSync, writeFileSync, chmodSync } from 'node:fs'
import { join } from 'node:path'
import { BuildError, findProgram, root, run, say, seconds, windows } from './common.mjs'

const modules = join(root, 'node_modules')

/**
 * Whether an optional package is the build of its parent for this platform. Other optional packages may be missing for good:
 * npm leaves out what does not compile.
 */
function isForThisPlatform({ os, cpu, libc }) {
  if (os === undefined && cpu === undefined) return false
  const allows = (list, value) =>
    list === undefined || list.includes(value) || (!list.includes(`!${value}`) && list.every((item) => item.startsWith('!')))
  if (!allows(os, process.platform) || !allows(cpu, process.arch)) return false
  return (
    libc === undefined || allows(libc, process.report.getReport().header.glibcVersionRuntime === undefined ? 'musl' : 'glibc')
  )
}

/** The first package that is not installed in the version of package-lock.json, as npm recorded what it installed. */
function firstMissing({ optional }) {
  const record = join(modules, '.package-lock.json')
  if (!existsSync(record)) return 'node_modules'
  const installed = JSON.parse(readFileSync(record, 'utf8')).packages
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === '' || entry.version === installed[path]?.version) continue
    if (installed[path] === undefined && entry.optional && !(optional && isForThisPlatform(entry))) continue
    return path.slice('node_modules/'.length)
  }
  return undefined
}

/** Installs exactly what package-lock.json says, when that is not there yet. */
export function installPackages() {
  if (firstMissing({ optional: true }) === undefined) return
  say('Installing packages …')
  const start = performance.now()
  // Under `npm run`, the same npm again.
  const own = process.env.npm_execpath
  const [program, args] = own?.endsWith('.js') ? [process.execPath, [own]] : [findProgram('npm'), []]
  if (program === undefined)
    throw new BuildError('npm was not found.', 'It comes with Node: install Node from nodejs.org or with a version manager.')
  run(program, [...args, 'ci', '--prefer-offline', '--no-audit', '--no-fund'], {
    what: 'npm ci',
    shell: windows && args.length === 0,
  })
  const missing = firstMissing({ optional: false })
  if (missing !== undefined) throw new BuildError(`npm ci did not install ${missing}.`, 'Remove node_modules and run this again.')
  say(`Installed packages in ${seconds(start)}.`)
}

/** Puts this project's own program beside those of its packages, where scripts and npx look. */
export function linkProgram() {
  const folder = join(modules, '.bin')
  const link = join(folder, 'unsloth')
  const target = join('..', '..', 'engine', 'unsloth.mjs')
  mkdirSync(folder, { recursive: true })
  if (windows) {
    writeFileSync(`${link}.cmd`, `@node "%~dp0\\${target}" %*\r\n`)
    return
  }
  try {
    if (readlinkSync(link) === target) return
  } catch {
    // There is none yet.
  }
  rmSync(link, { force: true })
  symlinkSync(target, link)
  chmodSync(join(root, 'engine', 'unsloth.mjs'), 0o755)
}
