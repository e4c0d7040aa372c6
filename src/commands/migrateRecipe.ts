import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { readError } from '../../engine/io/fileSystem.ts'
import { fileWriteError } from '../../engine/run/files.ts'
import type { Migration } from '../language/migrate/migrate.ts'
import { serverMessages } from '../language/commands.ts'
import type { Services } from '../services.ts'
import { pathOf } from '../trees/nodes.ts'
import { cancelled } from './pick.ts'

/**
 * Writes a file of Axolotl, LLaMA-Factory or Unsloth Studio as a recipe beside it and opens that; the file stays as it is.
 * Resolves to the recipe's path.
 */
export async function migrateRecipe(services: Services, argument: unknown): Promise<string> {
  const path = pathOf(argument) ?? activeYaml() ?? (await pickYaml())
  const open = vscode.workspace.textDocuments.find(({ uri }) => uri.scheme === 'file' && uri.fsPath === path)
  const text =
    open?.getText() ??
    (await readFile(path, 'utf8').catch((error: unknown) => {
      throw readError(error, path, 'file')
    }))
  const client = await services.recipeHelp()
  const migration = await client.sendRequest<Migration | null>(serverMessages.migrate, { text })
  if (migration === null) {
    throw new UnslothError(
      'USAGE',
      vscode.l10n.t('{0} is no recipe of Axolotl, LLaMA-Factory or Unsloth Studio.', basename(path)),
      { hint: vscode.l10n.t('A file that is a recipe already needs only another name: finetune.yaml.') },
    )
  }
  const target = freeName(path)
  try {
    await writeFile(target, migration.text, { flag: 'wx' })
  } catch (error) {
    throw fileWriteError(error, target)
  }
  await vscode.window.showTextDocument(vscode.Uri.file(target))
  const { notes } = migration
  if (notes.length > 0) {
    services.log.info(notes.join('\n'))
    const text =
      notes.length === 1
        ? vscode.l10n.t('1 setting could not be carried over; it stands at the end of the recipe.')
        : vscode.l10n.t('{0} settings could not be carried over; they stand at the end of the recipe.', notes.length)
    void vscode.window.showInformationMessage(text)
  }
  return target
}

/** `config.yml` becomes `config.finetune.yaml`; a number keeps files that are there. */
function freeName(path: string): string {
  const stem = basename(path).replace(/\.(?:ya?ml|json)$/i, '')
  for (let count = 1; ; count++) {
    const target = join(dirname(path), `${stem}${count === 1 ? '' : `-${count}`}.finetune.yaml`)
    if (!existsSync(target)) return target
  }
}

function activeYaml(): string | undefined {
  const document = vscode.window.activeTextEditor?.document
  return document?.uri.scheme === 'file' && /\.(?:ya?ml|json)$/i.test(document.uri.fsPath) ? document.uri.fsPath : undefined
}

async function pickYaml(): Promise<string> {
  const [file] =
    (await vscode.window.showOpenDialog({
      title: vscode.l10n.t('Convert to Recipe'),
      filters: { [vscode.l10n.t('Settings of training programs')]: ['yaml', 'yml', 'json'] },
    })) ?? []
  if (file === undefined) throw cancelled()
  return file.fsPath
}
