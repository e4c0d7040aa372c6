import { existsSync } from 'node:fs'
import { copyFile, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { fileWriteError } from '../../engine/run/files.ts'
import type { Services } from '../services.ts'
import { isTreeNode, pathOf } from '../trees/nodes.ts'
import { cancelled, choose, pickModel, pickWorkspaceFolder, type ModelChoice } from './pick.ts'
import { freeRecipeName, pathInRecipe, recipeText } from '../recipes/recipeText.ts'
import { starterRecipe } from '../recipes/starter.ts'

/** Asks for model, data set and method, writes a recipe and opens it. `start` may be a row of a tree: its model or data set is taken. */
export async function newRecipe(services: Services, start: unknown): Promise<string> {
  const title = vscode.l10n.t('New Recipe')
  const given = isTreeNode(start) ? start : undefined
  const folder = await pickWorkspaceFolder(title)
  const model = await pickModel(services, given?.kind === 'model' ? given : undefined, `${title} (1/3)`)
  const dataset = given?.kind === 'dataset' ? given.path : await pickDataset(services, `${title} (2/3)`)
  const method = (
    await choose(
      [
        {
          label: 'LoRA',
          description: vscode.l10n.t('trains an adapter of a few megabytes; the model stays as it is'),
          method: 'lora' as const,
        },
        {
          label: 'QLoRA',
          description: vscode.l10n.t('the same over 4-bit weights: a quarter of their memory, a little slower and less exact'),
          method: 'qlora' as const,
        },
        {
          label: vscode.l10n.t('Full fine-tuning'),
          description: vscode.l10n.t('trains every weight; about 16 bytes of memory for each'),
          method: 'full' as const,
        },
      ],
      { title: `${title} (3/3)`, placeHolder: vscode.l10n.t('Which method?') },
    )
  ).method
  const starter = model.name === 'stories260k'
  const text = recipeText({
    model: modelInRecipe(model, folder),
    dataset: pathInRecipe(await ownData(services, dataset, folder), folder),
    method,
    ...(starter ? { maxSteps: 80, learningRate: method === 'full' ? '1e-3' : '1e-2' } : {}),
  })
  return openNew(folder, text)
}

/** Puts the starter's recipe and data into the workspace. */
export async function openStarter({ library }: Services): Promise<string> {
  const folder = await pickWorkspaceFolder(vscode.l10n.t('Starter'))
  const data = await ownCopy(join(library.starterFolder, 'fables.jsonl'), folder)
  const text = starterRecipe(pathInRecipe(data, folder))
  return openNew(folder, text)
}

async function pickDataset({ library }: Services, title: string): Promise<string> {
  const items = (await library.datasets()).map(({ name, path, origin }) => ({
    label: name,
    description: origin === 'bundled' ? vscode.l10n.t('starter: fables') : '',
    path: path,
    iconPath: new vscode.ThemeIcon('database'),
  }))
  const browse = { label: vscode.l10n.t('Browse…'), path: undefined, iconPath: new vscode.ThemeIcon('folder-opened') }
  const { path } = await choose([...items, browse], { title, placeHolder: vscode.l10n.t('Which data set?') })
  if (path !== undefined) return path
  const [file] =
    (await vscode.window.showOpenDialog({
      title,
      filters: { [vscode.l10n.t('Data sets')]: ['jsonl', 'json', 'ndjson', 'csv', 'tsv', 'parquet', 'txt', 'md', 'gz'] },
    })) ?? []
  if (file === undefined) throw cancelled()
  return file.fsPath
}

const modelInRecipe = ({ name, path }: ModelChoice, folder: string): string =>
  name === 'stories260k' || (!existsSync(join(folder, name)) && /^[\w.-]+\/[\w.-]+$/.test(name) && path.includes('models--'))
    ? name
    : pathInRecipe(path, folder)

/** Data of the extension is copied beside the recipe: the extension's folder goes away with its next version. */
const ownData = (services: Services, path: string, folder: string): Promise<string> =>
  path.startsWith(services.library.starterFolder) ? ownCopy(path, folder) : Promise.resolve(path)

async function ownCopy(path: string, folder: string): Promise<string> {
  const target = join(folder, 'fables.jsonl')
  try {
    if (!existsSync(target)) await copyFile(path, target)
  } catch (error) {
    throw fileWriteError(error, target)
  }
  return target
}

async function openNew(folder: string, text: string): Promise<string> {
  const path = join(
    folder,
    freeRecipeName((name) => existsSync(join(folder, name))),
  )
  try {
    // Never over a file that came into being meanwhile.
    await writeFile(path, text, { flag: 'wx' })
  } catch (error) {
    throw fileWriteError(error, path)
  }
  await vscode.window.showTextDocument(vscode.Uri.file(path))
  return path
}

/** Copies files into the workspace so that recipes can name them; none is replaced. */
export async function addDatasets(sources: readonly vscode.Uri[], folder: string): Promise<string[]> {
  const added: string[] = []
  for (const source of sources) {
    const name = source.path.slice(source.path.lastIndexOf('/') + 1)
    if (source.scheme === 'file' && !relativeOutside(folder, source.fsPath)) {
      requireData(name)
      added.push(source.fsPath)
      continue
    }
    const target = placeFor(name, folder)
    await vscode.workspace.fs.copy(source, vscode.Uri.file(target), { overwrite: false })
    added.push(target)
  }
  return added
}

/** The same for files of which the editor has only the content. */
export async function addFiles(files: readonly vscode.DataTransferFile[], folder: string): Promise<void> {
  for (const file of files) {
    const target = placeFor(file.name, folder)
    const content = await file.data()
    try {
      await writeFile(target, content, { flag: 'wx' })
    } catch (error) {
      throw fileWriteError(error, target)
    }
  }
}

function requireData(name: string): void {
  if (!/\.(jsonl?|ndjson|csv|tsv|parquet)(\.gz)?$/i.test(name)) {
    throw new UnslothError('DATA', `${name} is not a data set.`, {
      hint: 'Data sets are .jsonl, .json, .csv, .tsv or .parquet files with one row for each example.',
    })
  }
}

function placeFor(name: string, folder: string): string {
  requireData(name)
  const target = join(folder, basename(name))
  if (!existsSync(target)) return target
  throw new UnslothError('FILE_WRITE', `${target} is there already.`, { hint: 'Rename one of the two files and add it again.' })
}

const relativeOutside = (folder: string, path: string): boolean => {
  for (let at = dirname(path); ; at = dirname(at)) {
    if (at === folder) return false
    if (dirname(at) === at) return true
  }
}

/** The path of an argument, for commands that open files. */
export const requirePath = (argument: unknown): string => {
  const path = pathOf(argument)
  if (path === undefined) throw new UnslothError('USAGE', 'Choose an item in the tree first.')
  return path
}
