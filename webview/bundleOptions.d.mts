import type { BuildOptions } from 'esbuild'

/** esbuild's options for the pages. */
export declare const webviewOptions: BuildOptions & { outdir: string }
