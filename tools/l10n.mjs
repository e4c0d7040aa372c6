// The texts of the extension for translators: l10n/bundle.l10n.json, made of the sources. `node tools/l10n.mjs` writes it;
// test/unit/extension/l10n.test.ts holds it current.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, sep } from 'node:path'
import { pathToFileURL } from 'node:url'
import { filesBelow, root } from './common.mjs'

/** Literal texts that the language server translates itself: it runs where the editor's own translation is not at hand. */
const serverTexts = (files) =>
  files
    .filter((file) => file.startsWith(join('src', 'language') + sep))
    .flatMap((file) =>
      [...readFileSync(join(root, file), 'utf8').matchAll(/\bt\(\s*(['"])((?:(?!\1)[^\\]|\\.)*)\1/g)].map(([, , text]) =>
        text.replaceAll(/\\(['"])/g, '$1'),
      ),
    )

/** Templates of what is wrong with a recipe, which the schema and the reader of recipes say. */
const recipeTexts = () =>
  [...filesBelow(join('src', 'shared', 'recipe')), ...filesBelow(join('engine', 'recipe'))]
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) =>
      [...readFileSync(join(root, file), 'utf8').matchAll(/\bsay`([^`]*)`/g)].map(([, text]) => {
        let value = 0
        return text.replaceAll(/\$\{[^}]*\}/g, () => `{${value++}}`)
      }),
    )

/** The whole file as it has to be. Texts of the pages stand in tables of their own. */
export async function l10nBundle() {
  const { getL10nJson } = createRequire(import.meta.url)('@vscode/l10n-dev')
  const files = filesBelow('src').filter((file) => file.endsWith('.ts') && !file.startsWith(join('src', 'shared') + sep))
  const found = await getL10nJson(files.map((file) => ({ extension: '.ts', contents: readFileSync(join(root, file), 'utf8') })))
  const { build } = await import('esbuild')
  const contents =
    "export { panelStrings } from './src/shared/panelStrings.ts'; export { previewStrings } from './src/shared/previewPage.ts'; export { recipeFields, sectionDocs } from './src/shared/recipe.ts'"
  const { outputFiles } = await build({
    absWorkingDir: root,
    stdin: { contents, resolveDir: root },
    bundle: true,
    format: 'esm',
    write: false,
  })
  const { panelStrings, previewStrings, recipeFields, sectionDocs } = await import(
    `data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`
  )
  const tables = [panelStrings, previewStrings, sectionDocs].flatMap((table) => Object.values(table))
  const docs = recipeFields.flatMap(({ meta }) => [
    meta.doc,
    meta.effect,
    meta.defaultDoc,
    meta.availability?.note,
    ...Object.values(meta.values ?? {}),
  ])
  const texts = {
    ...found,
    ...Object.fromEntries(
      [...tables, ...serverTexts(files), ...recipeTexts(), ...docs.filter(Boolean)].map((text) => [text, text]),
    ),
  }
  const sorted = Object.entries(texts).sort(([a], [b]) => (a < b ? -1 : 1))
  return `${JSON.stringify(Object.fromEntries(sorted), null, 2)}\n`
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  mkdirSync(join(root, 'l10n'), { recursive: true })
  writeFileSync(join(root, 'l10n', 'bundle.l10n.json'), await l10nBundle())
}
