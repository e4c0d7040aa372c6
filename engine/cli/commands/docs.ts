import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { generatedDocs, writeGeneratedDocs } from '../../recipe/generate.ts'
import { projectRoot } from '../../projectRoot.ts'
import type { CommandArgs } from '../commandArgs.ts'

/** Writes the docs that are generated from the recipe's schema and the architectures; with --check only tells whether they are current. */
export function docsCommand({ positionals, flags }: CommandArgs<'docs'>): number {
  const root = positionals[0] ?? projectRoot()
  if (!flags.check) {
    for (const path of writeGeneratedDocs(root)) console.log(`wrote ${path}`)
    return 0
  }
  const stale = [...generatedDocs()]
    .filter(([path, text]) => readFileSync(join(root, path), 'utf8') !== text)
    .map(([path]) => path)
  for (const path of stale) console.error(`${path} is not current: run \`npm run docs\`.`)
  return stale.length === 0 ? 0 : 1
}
