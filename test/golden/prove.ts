/**
 * npx tsx test/golden/prove.ts FOLDER…: verifies every golden case in the folders and writes what came out to
 * engine/model/proofs.ts and docs/architectures.md. Cases that are not in the folders keep the proof that they have.
 */
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Proof } from '../../engine/model/proof.ts'
import { proofs as earlier } from '../../engine/model/proofs.ts'
import { architectureDocs } from '../../engine/verify/architectureDocs.ts'
import { compare, type Comparison } from '../../engine/verify/compare.ts'
import { CaseComputation } from '../../engine/verify/compute.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { readJsonObject } from '../../engine/io/modelFolder.ts'

const root = join(import.meta.dirname, '../..')

const kinds: readonly (readonly [keyof Proof & ('logits' | 'gradients' | 'training'), RegExp])[] = [
  ['gradients', /^(full_grad|lora_grad|dpo_grad)/],
  ['training', /^(curve_|merged_)/],
  ['logits', /./],
]

function proofOf(name: string, architecture: string, results: readonly Comparison[]): Proof {
  const worst = { logits: 0, gradients: 0, training: 0 }
  for (const { name: quantity, error } of results.filter((result) => result.name !== 'greedy_ids')) {
    const [kind] = kinds.find(([, pattern]) => pattern.test(quantity))!
    worst[kind] = Math.max(worst[kind], Number(error.toPrecision(2)))
  }
  return {
    case: name,
    architecture,
    quantities: results.length,
    ...worst,
    greedy: results.some((result) => result.name === 'greedy_ids' && result.error === 0),
  }
}

async function proofsOf(folder: string): Promise<Proof[]> {
  const proofs: Proof[] = []
  for (const name of (await readdir(folder)).sort()) {
    const path = join(folder, name)
    const config = await readJsonObject(join(path, 'config.json')).catch(() => undefined)
    if (config === undefined) continue
    const golden = await Golden.open(path)
    const computation = new CaseComputation(golden, { device: { kind: 'cpu', threads: 2 }, compute: 'float32' })
    await computation.run()
    const results = await compare(golden, computation.quantities, new Set())
    const bad = results.filter(({ verdict }) => verdict !== 'ok')
    if (bad.length > 0)
      throw new Error(`${name}: ${bad.map((result) => `${result.name} ${result.verdict} ${result.error}`).join(', ')}`)
    proofs.push(proofOf(name, (config.architectures as string[])[0]!, results))
    console.log(name)
  }
  return proofs
}

const made = (await Promise.all(process.argv.slice(2).map(proofsOf))).flat()
const renewed = new Set(made.map((proof) => proof.case))
const proofs = [...earlier.filter((proof) => !renewed.has(proof.case)), ...made].sort(
  (a, b) => a.architecture.localeCompare(b.architecture) || a.case.localeCompare(b.case),
)
const lines = proofs.map(
  (proof) =>
    `  { ${Object.entries(proof)
      .map(([key, value]) => `${key}: ${typeof value === 'string' ? `'${value}'` : String(value)}`)
      .join(', ')} },`,
)
const text = `import type { Proof } from './proof.ts'\n\n/** Written by test/golden/prove.ts. */\n// prettier-ignore\nexport const proofs: readonly Proof[] = [\n${lines.join('\n')}\n]\n`
await writeFile(join(root, 'engine/model/proofs.ts'), text)
await writeFile(join(root, 'docs/architectures.md'), architectureDocs(proofs))
