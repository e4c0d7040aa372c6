// Builds the project from a fresh clone: packages, the compute addon, the engine, the editor extension. Plain Node; a second run with nothing
// changed is quick. `node build.mjs` or `npm run build`.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { BuildError, root } from './tools/common.mjs'
import { installPackages, linkProgram } from './tools/packages.mjs'
import { buildCpu, buildCuda } from './tools/kernels.mjs'
import { bundleEngine } from './tools/bundle.mjs'
import { bundleExtension } from './tools/extension.mjs'

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > 20 || (major === 20 && minor >= 19)) return
  throw new BuildError(
    `Node ${process.versions.node} is too old: 20.19 or newer is needed.`,
    'Install it from nodejs.org or with a version manager, then run this again.',
  )
}

async function main() {
  checkNode()
  installPackages()
  for (const folder of ['build', 'dist']) mkdirSync(join(root, folder), { recursive: true })
  const compiled = buildCpu()
  buildCuda({ tell: compiled })
  await bundleEngine()
  await bundleExtension()
  linkProgram()
}

try {
  await main()
} catch (error) {
  if (!(error instanceof BuildError)) throw error
  console.error(`\n${error.message}${error.hint === undefined ? '' : `\n  ${error.hint}`}`)
  process.exitCode = 1
}
