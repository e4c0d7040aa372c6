/** npx tsx test/golden/pack.ts CASE_FOLDER… [--whole]: packs golden cases into test/fixtures/golden. */
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { packCase, packedSuffix } from './packedCase.ts'

const target = join(dirname(fileURLToPath(import.meta.url)), '../fixtures/golden')
const args = process.argv.slice(2)
for (const folder of args.filter((arg) => !arg.startsWith('--'))) {
  const name = basename(resolve(folder))
  console.log(`${name}: ${await packCase(folder, join(target, `${name}${packedSuffix}`), args.includes('--whole'))} bytes`)
}
