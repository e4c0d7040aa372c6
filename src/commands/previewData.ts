import { readFile, stat } from 'node:fs/promises'
import { basename, dirname, resolve, sep } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { diagnoseRecipe } from '../../engine/recipe/parseRecipe.ts'
import { resolveRecipePaths } from '../../engine/recipe/recipePaths.ts'
import { recipeGlob } from '../contributions.ts'
import type { PreviewSource } from '../preview/previewPanels.ts'
import type { Services } from '../services.ts'
import { pathOf } from '../trees/nodes.ts'
import { choose, pickModel, pickRecipe } from './pick.ts'

const dataFile = /\.(?:jsonl?|ndjson|csv|tsv|parquet|txt|md)(?:\.gz)?$/i

/**
 * A recipe's data, or one file of data, as the model sees them, with what is trained of them. Where the engine may not run, the
 * first rows as they stand in the file.
 */
export async function previewData(services: Services, argument: unknown): Promise<void> {
  const named = pathOf(argument) ?? activeData()
  const dataset = named !== undefined && dataFile.test(named) ? named : undefined
  if (!mayAsk(services)) return showRaw(services, argument, dataset)
  if (dataset !== undefined) services.previews.open(await sourceOf(services, dataset))
  else services.previews.open({ recipe: await recipe(argument) })
}

/** Opens a data set: in the editor, or in the preview where the editor would show nothing of it. */
export async function openDataset(services: Services, path: string): Promise<void> {
  const readable =
    !/\.(?:parquet|gz)$/i.test(path) &&
    (await stat(path).then(
      ({ size }) => size,
      () => 0,
    )) < editorBytes
  if (readable) await vscode.commands.executeCommand('vscode.open', vscode.Uri.file(path))
  else await previewData(services, path)
}

/** From this size on the editor asks before it opens a text, and gives it none of its help. */
const editorBytes = 50 * 2 ** 20

function activeData(): string | undefined {
  const document = vscode.window.activeTextEditor?.document
  return document?.uri.scheme === 'file' && dataFile.test(document.uri.fsPath) ? document.uri.fsPath : undefined
}

async function recipe(argument: unknown): Promise<string> {
  const path = await pickRecipe(argument, vscode.l10n.t('Preview Data'))
  if (path === undefined) throw new UnslothError('USAGE', vscode.l10n.t('There is no recipe in this workspace.'))
  return path
}

function mayAsk({ locate }: Services): boolean {
  try {
    locate()
    return true
  } catch {
    return false
  }
}

async function showRaw(services: Services, argument: unknown, dataset: string | undefined): Promise<void> {
  const { recipeRows, fileRows } = await import('./rawRows.ts')
  const path = dataset ?? (await recipe(argument))
  await services.reports.show(
    `Data of ${basename(path)}.md`,
    dataset === undefined ? await recipeRows(path, dirname(path)) : await fileRows(path),
  )
}

/** How a file is to be read: as the recipe that names it says, or with a model that the user picks. */
async function sourceOf(services: Services, dataset: string): Promise<PreviewSource> {
  const recipes = await recipesWith(dataset)
  const title = vscode.l10n.t('Preview Data')
  const other = { label: vscode.l10n.t('With a model…'), path: undefined, iconPath: new vscode.ThemeIcon('symbol-structure') }
  const path =
    recipes.length < 2
      ? recipes[0]
      : (
          await choose(
            [
              ...recipes.map((file) => ({
                label: vscode.workspace.asRelativePath(file),
                path: file,
                iconPath: new vscode.ThemeIcon('file'),
              })),
              other,
            ],
            { title, placeHolder: vscode.l10n.t('As which recipe reads it?') },
          )
        ).path
  if (path !== undefined) return { recipe: path, dataset }
  return { dataset, model: (await pickModel(services, undefined, title, ['model'])).path }
}

/** Recipes of the workspace that train on a file. */
async function recipesWith(dataset: string): Promise<string[]> {
  const files = await vscode.workspace.findFiles(recipeGlob, '**/{node_modules,outputs}/**', 100)
  const found = await Promise.all(
    files.map(async ({ fsPath }) => {
      const { recipe: written } = diagnoseRecipe(await readFile(fsPath, 'utf8').catch(() => ''), fsPath)
      if (written === null) return []
      const { data } = resolveRecipePaths(written, dirname(fsPath))
      const named = [...data.local_dataset, ...data.eval_dataset, ...(data.dataset === null ? [] : [data.dataset])].map((path) =>
        resolve(dirname(fsPath), path),
      )
      return named.some((path) => path === dataset || dataset.startsWith(path + sep)) ? [fsPath] : []
    }),
  )
  return found.flat().sort()
}
