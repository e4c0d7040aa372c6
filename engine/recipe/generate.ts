import * as fs from 'node:fs'
import * as path from 'node:path'
import { recipeDocs, recipeJsonSchema } from '#shared/recipe.ts'
import { proofs } from '../model/proofs.ts'
import { architectureDocs } from '../verify/architectureDocs.ts'

/** Files made from the recipe's schema and the registry of architectures, by path below the root of the repository. */
export function generatedDocs(): ReadonlyMap<string, string> {
  return new Map([
    ['docs/architectures.md', architectureDocs(proofs)],
    ['docs/recipe.md', recipeDocs()],
    ['syntaxes/finetune.schema.json', `${JSON.stringify(recipeJsonSchema(), null, 2)}\n`],
  ])
}

/** Writes the generated files below `root`; returns the paths of those that changed. */
export function writeGeneratedDocs(root: string): string[] {
  const changed: string[] = []
  for (const [name, content] of generatedDocs()) {
    const file = path.join(root, name)
    if (fs.existsSync(file) && fs.readFileSync(file, 'utf8') === content) continue
    fs.mkdirSync(path.dirname(file), { recursive: true })
    const beside = `${file}.${process.pid}.tmp`
    fs.writeFileSync(beside, content, { flush: true })
    fs.renameSync(beside, file)
    changed.push(name)
  }
  return changed
}
