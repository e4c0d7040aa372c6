import { join } from 'node:path'
import { build } from 'esbuild'
import { root } from '../../../tools/common.mjs'

/** Mocha is loaded from this repository, wherever the module stands. */
const ownMocha = {
  name: 'own mocha',
  setup: ({ onResolve }) =>
    onResolve({ filter: /^mocha$/ }, () => ({ path: join(root, 'node_modules', 'mocha', 'index.js'), external: true })),
}

/**
 * Bundles the tests that run inside the extension host; returns the path of the module. It stands inside the extension, so that
 * both are given the same `vscode`.
 */
export async function bundleSuite(extension) {
  const outfile = join(extension, 'test', 'host.cjs')
  await build({
    absWorkingDir: root,
    entryPoints: ['test/host/suite/index.ts'],
    outfile,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    external: ['vscode'],
    plugins: [ownMocha],
    sourcemap: 'inline',
    logLevel: 'warning',
    define: { 'import.meta.url': 'importMetaUrl' },
    banner: { js: "const importMetaUrl = require('node:url').pathToFileURL(__filename).href;" },
  })
  return outfile
}
