import { readFileSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BuildError, digest, filesBelow, isCurrent, markCurrent, root, say, seconds } from './common.mjs'

/** esbuild's options for the engine: one ES module for Node. CommonJS packages in it call a `require` of its own. */
export const engineOptions = {
  absWorkingDir: root,
  entryPoints: ['engine/main.ts'],
  outfile: 'dist/engine.mjs',
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'esm',
  sourcemap: true,
  sourcesContent: false,
  legalComments: 'none',
  metafile: true,
  logLevel: 'warning',
  banner: { js: "import { createRequire as createRequireOfBundle } from 'node:module'; const require = createRequireOfBundle(import.meta.url);" },
}

/** Bundles engine/ into dist/engine.mjs, when anything changed. */
export async function bundleEngine() {
  const sources = [...filesBelow('engine'), ...filesBelow(join('src', 'shared'))].filter((file) => file.endsWith('.ts'))
  const key = digest([...sources, 'package-lock.json', 'package.json', join('tools', 'bundle.mjs')])
  const output = join('dist', 'engine.mjs')
  if (!isCurrent(output, key)) {
    const start = performance.now()
    const { build } = await import('esbuild')
    let result
    try {
      result = await build(engineOptions)
    } catch (error) {
      throw new BuildError(`The engine was not bundled: ${error.message}`)
    }
    writeFileSync(join(root, 'dist', 'engine.meta.json'), JSON.stringify(result.metafile))
    markCurrent(output, key)
    say(`Bundled the engine in ${seconds(start)}.`)
  }
  // Newer than every source, so that engine/unsloth.mjs can tell that it is current.
  const now = new Date()
  utimesSync(join(root, output), now, now)
}

/** Names of the packages whose code stands in dist/engine.mjs, sorted. */
export function bundledPackages() {
  const { inputs } = JSON.parse(readFileSync(join(root, 'dist', 'engine.meta.json'), 'utf8'))
  const names = new Set()
  for (const file of Object.keys(inputs)) {
    const match = /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)
    if (match !== null) names.add(match[1])
  }
  return [...names].sort()
}
