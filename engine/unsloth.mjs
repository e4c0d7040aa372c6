#!/usr/bin/env node
// The program `unsloth`: loads the engine that the build bundled from engine/main.ts.
import { existsSync, readdirSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const bundle = join(root, 'dist', 'engine.mjs')

/** Whether a source below the folder was changed after `time` (milliseconds). The starter is data, and runs of it stand there. */
function changedAfter(folder, time) {
  return readdirSync(folder, { withFileTypes: true }).some((entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return entry.name !== 'starter' && changedAfter(path, time)
    return /\.(ts|json)$/.test(entry.name) && statSync(path).mtimeMs > time
  })
}

/** What stands against running the bundle; an installed package has no sources that it could be older than. */
function obstacle() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) return `Node ${process.versions.node} is too old: 20.19 or newer is needed.`
  if (!existsSync(bundle)) return 'The engine is not built yet. Run `npm run build` in its folder.'
  if (!existsSync(join(root, 'engine', 'main.ts'))) return undefined
  const time = statSync(bundle).mtimeMs
  const changed = [join(root, 'engine'), join(root, 'src', 'shared')].some((folder) => changedAfter(folder, time))
  return changed ? 'The engine was built from older sources. Run `npm run build` in its folder.' : undefined
}

const problem = obstacle()
if (problem === undefined) {
  const { main } = await import(pathToFileURL(bundle).href)
  process.exitCode = await main(process.argv.slice(2))
} else {
  console.error(problem)
  process.exitCode = 1
}
