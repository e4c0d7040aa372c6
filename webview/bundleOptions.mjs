import { fileURLToPath } from 'node:url'

/** esbuild's options for the pages: dist/webview/training.js and preview.js, their .css and codicon.ttf beside them. */
export const webviewOptions = {
  absWorkingDir: fileURLToPath(new URL('..', import.meta.url)),
  entryPoints: { training: 'webview/training/main.ts', preview: 'webview/preview/main.ts' },
  outdir: 'dist/webview',
  bundle: true,
  platform: 'browser',
  target: 'chrome130',
  format: 'iife',
  minify: true,
  legalComments: 'none',
  loader: { '.ttf': 'file' },
  assetNames: '[name]',
  metafile: true,
  logLevel: 'warning',
}
