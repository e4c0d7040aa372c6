import { utimesSync } from 'node:fs'
import { join, sep } from 'node:path'
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
  banner: {
    js: "import { createRequire as createRequireOfBundle } from 'node:module'; const require = createRequireOfBundle(import.meta.url);",
  },
}

/** Bundles engine/ into dist/engine.mjs, when anything changed. */
export async function bundleEngine() {
  const sources = [...filesBelow('engine'), ...filesBelow(join('src', 'shared'))].filter(
    (file) => /\.(ts|json)$/.test(file) && !file.startsWith(join('engine', 'starter') + sep),
  )
  const key = digest([...sources, 'package-lock.json', 'package.json', join('tools', 'bundle.mjs')])
  const output = join('dist', 'engine.mjs')
  if (!isCurrent(output, key)) {
    const start = performance.now()
    const { build } = await import('esbuild')
    try {
      await build(engineOptions)
    } catch (error) {
      throw new BuildError(`The engine was not bundled: ${error.message}`)
    }
    markCurrent(output, key)
    say(`Bundled the engine in ${seconds(start)}.`)
  }
  // Newer than every source, so that engine/unsloth.mjs can tell that it is current.
  const now = new Date()
  utimesSync(join(root, output), now, now)
}

/** Names of the packages whose code stands in a bundle, by esbuild's metafile. */
export function bundledPackages({ outputs }) {
  const names = new Set()
  for (const { inputs } of Object.values(outputs)) {
    for (const [file, { bytesInOutput }] of Object.entries(inputs)) {
      const match = /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)
      if (match !== null && bytesInOutput > 0) names.add(match[1])
    }
  }
  return [...names].sort()
}
