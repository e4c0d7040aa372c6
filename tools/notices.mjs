// THIRD_PARTY_NOTICES.md: the licences of everything by others that this project contains or builds into its programs.
// `node tools/notices.mjs` writes it; test/unit/setup.test.ts holds it current.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { bundledPackages, engineOptions } from './bundle.mjs'
import { root } from './common.mjs'
import { extensionBundles } from './extension.mjs'

/** Compiled into the addon. */
const headers = ['node-addon-api', 'node-api-headers']

function licenceOf(name) {
  const folder = join(root, 'node_modules', name)
  const { version, license, repository, homepage } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const file = readdirSync(folder).find((entry) => /^(licen[cs]e|copying)/i.test(entry))
  if (file === undefined && typeof license !== 'string') throw new Error(`${name} names no licence and has no licence file`)
  const url = (typeof repository === 'string' ? repository : (repository?.url ?? homepage ?? ''))
    .replace(/^git\+/, '')
    .replace(/\.git$/, '')
    .replace(/^git:/, 'https:')
    .replace(/^github:/, 'https://github.com/')
  return {
    title: `${name} ${version}`,
    licence: license,
    url,
    text:
      file === undefined ? `${license}; the package has no licence text of its own.` : readFileSync(join(folder, file), 'utf8'),
  }
}

/** The whole file as it has to be. */
export async function notices() {
  const { build } = await import('esbuild')
  const bundles = [engineOptions, ...Object.values(await extensionBundles())]
  const packages = []
  for (const options of bundles)
    packages.push(...bundledPackages((await build({ ...options, write: false, metafile: true })).metafile))
  const starter = {
    title: 'stories260k, the starter model in engine/starter/model',
    licence: 'MIT',
    url: 'https://huggingface.co/karpathy/tinyllamas',
    text: readFileSync(join(root, 'engine', 'starter', 'model', 'LICENSE'), 'utf8'),
  }
  const entries = [...[...new Set([...packages, ...headers])].sort().map(licenceOf), starter]
  const fence = '````'
  return [
    '# Third-party notices',
    '',
    'Unsloth for VS Code is licensed under the Apache License 2.0 (see LICENSE). It contains the following works of others. Made by `npm run docs`.',
    '',
    '| What | Licence |',
    '|---|---|',
    ...entries.map(({ title, licence, url }) => `| [${title}](${url}) | ${licence} |`),
    '',
    'The fables in `engine/starter/fables.jsonl` are in the public domain.',
    '',
    ...entries.flatMap(({ title, text }) => [
      `## ${title}`,
      '',
      `${fence}text`,
      text
        .replaceAll('\r\n', '\n')
        .replace(/[ \t]+$/gm, '')
        .trim(),
      fence,
      '',
    ]),
  ].join('\n')
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href)
  writeFileSync(join(root, 'THIRD_PARTY_NOTICES.md'), await notices())
