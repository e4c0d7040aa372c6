// Packs the extension for one platform: `npm run package`. What is packed stands in .vscodeignore.
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { BuildError, root, say } from './common.mjs'

/** The largest package without CUDA kernels, in bytes. */
export const maxPackageBytes = 12 * 2 ** 20

const vsce = () => createRequire(import.meta.url)('@vscode/vsce')

const required = [
  'dist/extension.cjs',
  'dist/languageServer.cjs',
  'dist/engine.mjs',
  'dist/webview/training.js',
  'dist/webview/preview.js',
  'engine/unsloth.mjs',
  'build/cpu/kernels.node',
]

/** Puts everything that the package holds into a folder, as the editor finds it after installation. */
export async function stagePackage(folder = join(root, 'dist', 'package')) {
  const missing = required.filter((file) => !existsSync(join(root, file)))
  if (missing.length > 0) throw new BuildError(`The package needs ${missing.join(', ')}.`, 'Run `npm run build` first.')
  const { listFiles } = vsce()
  // "none": everything is bundled, so no package of node_modules belongs in it.
  const files = await listFiles({ cwd: root, packageManager: 0, ignoreFile: join(root, '.vscodeignore') })
  rmSync(folder, { recursive: true, force: true })
  for (const file of files) {
    mkdirSync(dirname(join(folder, file)), { recursive: true })
    copyFileSync(join(root, file), join(folder, file))
  }
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(manifest(), null, 2)}\n`)
  return folder
}

/** package.json without what only the repository needs. */
function manifest() {
  const all = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  return Object.fromEntries(
    Object.entries(all).filter(([key]) => !['devDependencies', 'scripts', 'imports', 'private'].includes(key)),
  )
}

/** Makes the package; resolves to its path. */
export async function makePackage(target = `${process.platform}-${process.arch}`) {
  const folder = await stagePackage()
  const { version, name } = manifest()
  const packagePath = join(root, 'dist', `${name}-${target}-${version}.vsix`)
  const { createVSIX } = vsce()
  await createVSIX({
    cwd: folder,
    packagePath,
    target,
    dependencies: false,
    allowMissingRepository: true,
    skipLicense: true,
    rewriteRelativeLinks: false,
  })
  const { size } = statSync(packagePath)
  if (size > maxPackageBytes) throw new BuildError(`${packagePath} has ${size} bytes; at most ${maxPackageBytes} are allowed.`)
  say(`Packed ${packagePath} (${(size / 2 ** 20).toFixed(1)} MB).`)
  return packagePath
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    await makePackage(process.argv[2])
  } catch (error) {
    if (!(error instanceof BuildError)) throw error
    console.error(`\n${error.message}\n  ${error.hint ?? ''}`)
    process.exitCode = 1
  }
}
