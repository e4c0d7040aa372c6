import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BuildError, digest, filesBelow, isCurrent, markCurrent, root, say, seconds } from './common.mjs'

/** CommonJS has no import.meta: the engine's modules get the place of the bundle that they are in. */
const commonJs = {
  absWorkingDir: root,
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'cjs',
  external: ['vscode'],
  define: { 'import.meta.url': 'importMetaUrl' },
  banner: { js: "const importMetaUrl = require('node:url').pathToFileURL(__filename).href;" },
  // The dialect of the packages that VS Code's own clients are bundled with.
  mainFields: ['module', 'main'],
  minify: true,
  keepNames: true,
  sourcemap: true,
  sourcesContent: false,
  legalComments: 'none',
  metafile: true,
  logLevel: 'warning',
}

/** What the editor loads, by the bundle's name in dist/. */
export async function extensionBundles() {
  const { webviewOptions } = await import('../webview/bundleOptions.mjs')
  return {
    'extension.cjs': { ...commonJs, entryPoints: ['src/extension.ts'], outfile: 'dist/extension.cjs' },
    'languageServer.cjs': { ...commonJs, entryPoints: ['src/language/server.ts'], outfile: 'dist/languageServer.cjs' },
    'webview/training.js': webviewOptions, // makes preview.js as well
  }
}

/** Bundles the extension, its language server and its pages, when anything changed. */
export async function bundleExtension() {
  const sources = [...filesBelow('src'), ...filesBelow('engine').filter((file) => file.endsWith('.ts')), ...filesBelow('webview')]
  const key = digest([...sources, 'package-lock.json', join('tools', 'extension.mjs'), join('tools', 'bundle.mjs')])
  const marker = join('dist', 'extension.cjs')
  const bundles = await extensionBundles()
  if (isCurrent(marker, key) && Object.keys(bundles).every((name) => existsSync(join(root, 'dist', name)))) return
  const start = performance.now()
  const { build } = await import('esbuild')
  const outputs = {}
  try {
    for (const options of Object.values(bundles)) Object.assign(outputs, (await build(options)).metafile.outputs)
  } catch (error) {
    throw new BuildError(`The extension was not bundled: ${error.message}`)
  }
  // What went into the package, for the notices.
  writeFileSync(join(root, 'dist', 'extension.meta.json'), JSON.stringify({ outputs }))
  markCurrent(marker, key)
  say(`Bundled the extension in ${seconds(start)}.`)
}
