import { findProgram, run, say } from './common.mjs'

/** Whether missing packages can be installed without asking: root, on Debian and its kin. */
export const canInstall = () => process.getuid?.() === 0 && findProgram('apt-get') !== undefined

/** Installs Debian packages; only where `canInstall`. */
export function installDebian(packages) {
  say(`Installing ${packages.join(', ')} …`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  run('apt-get', ['update', '-qq'], { env, what: 'apt-get update' })
  run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...packages], {
    env,
    what: `apt-get install ${packages.join(' ')}`,
  })
}

/** The command that somebody who is not root has to type. */
export const installCommand = (packages) => `sudo apt-get install ${packages.join(' ')}`
