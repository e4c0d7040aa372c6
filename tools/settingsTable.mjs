// The settings table of README.md, from what package.json contributes. `node tools/settingsTable.mjs` writes it;
// test/unit/setup.test.ts holds it current.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { root } from './common.mjs'

const begin = '<!-- settings: made by `npm run docs` -->'
const end = '<!-- end of settings -->'

/** README.md as it has to be. */
export function readmeWithSettings() {
  const read = (name) => readFileSync(join(root, name), 'utf8')
  const texts = JSON.parse(read('package.nls.json'))
  const sections = [JSON.parse(read('package.json')).contributes.configuration].flat()
  const rows = sections
    .flatMap(({ properties }) => Object.entries(properties))
    .map(([name, setting]) => {
      const text = (setting.markdownDescription ?? setting.description).replace(/^%(.+)%$/, (_, key) => texts[key])
      return `| \`${name}\` | \`${JSON.stringify(setting.default)}\` | ${text.replaceAll('|', '\\|')} |`
    })
  const [before, rest] = read('README.md').split(begin)
  const after = rest?.split(end)[1]
  if (after === undefined) throw new Error(`README.md has no place for the settings: ${begin} … ${end}`)
  return `${before}${begin}\n| Setting | Default | What it does |\n|---|---|---|\n${rows.join('\n')}\n${end}${after}`
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href)
  writeFileSync(join(root, 'README.md'), readmeWithSettings())
