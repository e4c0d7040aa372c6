import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  commandIds,
  contextKeys,
  languageId,
  nodeKinds,
  restrictedSettings,
  settingDefaults,
  taskType,
  viewContainer,
  views,
  walkthrough,
} from '../../../src/contributions.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))

interface Manifest {
  readonly main: string
  readonly engines: { readonly vscode: string }
  readonly devDependencies: Readonly<Record<string, string>>
  readonly extensionKind: readonly string[]
  readonly capabilities: {
    readonly untrustedWorkspaces: { readonly supported: unknown; readonly restrictedConfigurations: readonly string[] }
  }
  readonly contributes: {
    readonly commands: readonly { readonly command: string; readonly category: string; readonly enablement?: string }[]
    readonly configuration: {
      readonly properties: Readonly<Record<string, { readonly default: unknown; readonly enum?: readonly string[] }>>
    }
    readonly menus: Readonly<Record<string, readonly { readonly command: string; readonly when?: string }[]>>
    readonly keybindings: readonly { readonly command: string; readonly when: string }[]
    readonly views: Readonly<Record<string, readonly { readonly id: string }[]>>
    readonly viewsWelcome: readonly { readonly view: string; readonly contents: string }[]
    readonly languages: readonly { readonly id: string; readonly configuration: string }[]
    readonly grammars: readonly { readonly path: string }[]
    readonly yamlValidation: readonly { readonly url: string }[]
    readonly taskDefinitions: readonly { readonly type: string }[]
    readonly problemMatchers: readonly { readonly pattern: { readonly regexp: string } }[]
    readonly walkthroughs: readonly {
      readonly id: string
      readonly steps: readonly { readonly media: { readonly markdown: string }; readonly completionEvents: readonly string[] }[]
    }[]
  }
}

const text = readFileSync(join(root, 'package.json'), 'utf8')
const manifest = JSON.parse(text) as Manifest
const strings = JSON.parse(readFileSync(join(root, 'package.nls.json'), 'utf8')) as Readonly<Record<string, string>>
const { contributes } = manifest

describe('what the extension contributes', () => {
  it('commands are those of src/contributions.ts', () => {
    assert.deepEqual(contributes.commands.map(({ command }) => command).sort(), [...commandIds].sort())
    assert.ok(contributes.commands.every(({ category }) => category === 'Unsloth'))
  })

  it('menus and keys name commands that there are', () => {
    const used = [...Object.values(contributes.menus).flat(), ...contributes.keybindings].map(({ command }) => command)
    assert.deepEqual(
      used.filter((id) => !(commandIds as string[]).includes(id)),
      [],
    )
  })

  it('settings have the names and defaults of src/contributions.ts', () => {
    const defaults = Object.fromEntries(
      Object.entries(contributes.configuration.properties).map(([name, { default: value }]) => [name, value]),
    )
    assert.deepEqual(defaults, settingDefaults)
    for (const { default: value, enum: values } of Object.values(contributes.configuration.properties))
      assert.ok(values === undefined || values.includes(value as string))
  })

  it('settings that name programs are restricted', () => {
    assert.deepEqual(manifest.capabilities.untrustedWorkspaces.restrictedConfigurations, restrictedSettings)
    assert.equal(manifest.capabilities.untrustedWorkspaces.supported, 'limited')
    assert.deepEqual(manifest.extensionKind, ['workspace'])
  })

  it('when clauses name context keys and node kinds that are set', () => {
    const clauses = [
      ...Object.values(contributes.menus)
        .flat()
        .map(({ when }) => when ?? ''),
      ...contributes.keybindings.map(({ when }) => when),
      ...contributes.commands.map(({ enablement }) => enablement ?? ''),
    ]
    const keys = clauses.flatMap((clause) => [...clause.matchAll(/(?<!== )\bunsloth\.\w+/g)].map(([key]) => key))
    assert.deepEqual(
      [...new Set(keys)].filter((key) => !(contextKeys as string[]).includes(key)),
      [],
    )
    const kinds = clauses.flatMap((clause) =>
      [...clause.matchAll(/viewItem =~ \/\\b\(?([\w|]+)\)?\\b\//g)].flatMap(([, words]) => words!.split('|')),
    )
    assert.ok(kinds.length > 0)
    assert.deepEqual(
      [...new Set(kinds)].filter((kind) => !(nodeKinds as readonly string[]).includes(kind)),
      [],
    )
  })

  it('what needs the engine needs trust', () => {
    const free = contributes.commands
      .filter(({ enablement }) => enablement !== 'isWorkspaceTrusted')
      .map(({ command }) => command)
    for (const id of [
      'unsloth.fineTune',
      'unsloth.dryRun',
      'unsloth.generate',
      'unsloth.merge',
      'unsloth.verify',
      'unsloth.doctor',
      'unsloth.resumeRun',
    ])
      assert.ok(!free.includes(id), id)
  })

  it('views, language, task and walkthrough have their names', () => {
    assert.deepEqual(contributes.views[viewContainer]!.map(({ id }) => id).sort(), Object.values(views).sort())
    assert.deepEqual(
      contributes.viewsWelcome.map(({ view }) => view).filter((view) => !Object.values(views).includes(view as never)),
      [],
    )
    assert.deepEqual(
      contributes.languages.map(({ id }) => id),
      [languageId],
    )
    assert.deepEqual(
      contributes.taskDefinitions.map(({ type }) => type),
      [taskType],
    )
    assert.deepEqual(
      contributes.walkthroughs.map(({ id }) => id),
      [walkthrough],
    )
  })

  it('links in texts call commands that there are', () => {
    const called = Object.values(strings).flatMap((value) =>
      [...value.matchAll(/\(command:(unsloth\.\w+)\)/g)].map(([, id]) => id!),
    )
    assert.ok(called.length > 5)
    assert.deepEqual(
      called.filter((id) => !(commandIds as string[]).includes(id)),
      [],
    )
    const completing = contributes.walkthroughs.flatMap(({ steps }) => steps.flatMap(({ completionEvents }) => completionEvents))
    for (const event of completing) {
      const [kind, name] = event.split(':')
      assert.ok((kind === 'onCommand' ? (commandIds as string[]) : (contextKeys as string[])).includes(name!), event)
    }
  })

  it('every text is there, and every file', () => {
    const used = [...text.matchAll(/"%([\w.]+)%"/g)].map(([, key]) => key!)
    assert.deepEqual(
      used.filter((key) => strings[key] === undefined),
      [],
    )
    assert.deepEqual(
      Object.keys(strings).filter((key) => !used.includes(key) && key !== 'displayName'),
      [],
    )
    const files = [
      ...contributes.grammars.map(({ path }) => path),
      ...contributes.yamlValidation.map(({ url }) => url),
      ...contributes.languages.map(({ configuration }) => configuration),
      ...contributes.walkthroughs.flatMap(({ steps }) => steps.map(({ media }) => media.markdown)),
      ...[...text.matchAll(/"(?:\.\/)?(webview\/media\/[\w.-]+)"/g)].map(([, path]) => path!),
    ]
    assert.deepEqual(
      files.filter((path) => !existsSync(join(root, path))),
      [],
    )
  })

  it('types are those of the oldest editor that it runs in', () => {
    const [major, minor] = manifest.devDependencies['@types/vscode']!.split('.')
    assert.match(manifest.engines.vscode, new RegExp(`^\\^${major}\\.${minor}\\.`))
  })

  it('the problem matcher reads what the engine prints', () => {
    const pattern = new RegExp(contributes.problemMatchers[0]!.pattern.regexp)
    assert.deepEqual(pattern.exec('error: /a b/finetune.yaml:4:3: training.max_stepz is not known')?.slice(1), [
      'error',
      '/a b/finetune.yaml',
      '4',
      '3',
      'training.max_stepz is not known',
    ])
    assert.deepEqual(pattern.exec('/a/finetune.yaml:5:1: again')?.slice(1), [undefined, '/a/finetune.yaml', '5', '1', 'again'])
    assert.deepEqual(pattern.exec('error: data/train.jsonl:17: not JSON')?.slice(1), [
      'error',
      'data/train.jsonl',
      '17',
      undefined,
      'not JSON',
    ])
  })
})
