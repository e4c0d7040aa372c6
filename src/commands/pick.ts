import { basename } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import { languageId, recipeGlob } from '../contributions.ts'
import type { Services } from '../services.ts'
import { progressText, stateIcons } from '../status/runText.ts'
import { pathOf, runOf } from '../trees/nodes.ts'

/** The user closed a question: the command ends without a word. */
export const cancelled = (): vscode.CancellationError => new vscode.CancellationError()

/** The answer to a QuickPick; closing it cancels the command. */
export async function choose<T extends vscode.QuickPickItem>(
  items: readonly T[] | Promise<readonly T[]>,
  options: vscode.QuickPickOptions,
): Promise<T> {
  const chosen = await vscode.window.showQuickPick(items, { matchOnDescription: true, ...options })
  if (chosen === undefined) throw cancelled()
  return chosen
}

export interface RunQuestion {
  readonly title: string
  readonly accepts: (view: RunView) => boolean
  /** Said when no run is acceptable. */
  readonly none: string
}

/** The run that an argument names, else the only acceptable one, else the one that the user picks. */
export async function pickRun({ runs }: Services, argument: unknown, { title, accepts, none }: RunQuestion): Promise<RunView> {
  const named = runOf(argument)
  if (named !== undefined) {
    const view = await runs.follow(named)
    if (view === undefined) throw new UnslothError('RUN_INVALID', `${named} is not a run.`, { hint: 'It may have been deleted.' })
    return view
  }
  if (runs.views.length === 0) await runs.refresh()
  const candidates = runs.views.filter(accepts)
  if (candidates.length === 0) throw new UnslothError('USAGE', none)
  if (candidates.length === 1) return candidates[0]!
  return (await choose(candidates.map(runChoice), { title, placeHolder: vscode.l10n.t('Which run?') })).view
}

export const runChoice = (view: RunView): vscode.QuickPickItem & { readonly view: RunView } => ({
  label: `$(${stateIcons[view.state].replace('~spin', '')}) ${view.status.name}`,
  description: progressText(view),
  detail: vscode.workspace.asRelativePath(view.dir),
  view,
})

/** The recipe that an argument or the editor names, saved; undefined when neither does. */
export async function recipeOf(argument: unknown): Promise<string | undefined> {
  const named = pathOf(argument)
  const active = vscode.window.activeTextEditor?.document
  const path = named ?? (active?.languageId === languageId && active.uri.scheme === 'file' ? active.uri.fsPath : undefined)
  if (path === undefined) return undefined
  const open = vscode.workspace.textDocuments.find(({ uri, isDirty }) => isDirty && uri.scheme === 'file' && uri.fsPath === path)
  if (open !== undefined && !(await open.save()))
    throw new UnslothError('FILE_WRITE', `${path} could not be saved.`, { hint: 'Save it and try again.' })
  return path
}

/** The recipe that is meant, asking among those of the workspace; undefined: a new one is wanted. */
export async function pickRecipe(argument: unknown, title: string): Promise<string | undefined> {
  const known = await recipeOf(argument)
  if (known !== undefined) return known
  const found = await vscode.workspace.findFiles(recipeGlob, '**/{node_modules,outputs}/**', 200)
  if (found.length === 0) return undefined
  const items = found
    .map((uri) => ({ label: vscode.workspace.asRelativePath(uri), path: uri.fsPath, iconPath: new vscode.ThemeIcon('file') }))
    .sort((a, b) => a.label.localeCompare(b.label))
  const fresh = { label: vscode.l10n.t('New recipe…'), path: undefined, iconPath: new vscode.ThemeIcon('add') }
  return (await choose([...items, fresh], { title, placeHolder: vscode.l10n.t('Which recipe?') })).path
}

/** A folder of the workspace to put something into. */
export async function pickWorkspaceFolder(title: string): Promise<string> {
  const folders = (vscode.workspace.workspaceFolders ?? []).filter(({ uri }) => uri.scheme === 'file')
  if (folders.length === 1) return folders[0]!.uri.fsPath
  if (folders.length > 1) {
    return (
      await choose(
        folders.map(({ name, uri }) => ({ label: name, description: uri.fsPath, path: uri.fsPath })),
        { title, placeHolder: vscode.l10n.t('In which folder?') },
      )
    ).path
  }
  const [chosen] =
    (await vscode.window.showOpenDialog({
      title,
      canSelectFolders: true,
      canSelectFiles: false,
      openLabel: vscode.l10n.t('Use This Folder'),
    })) ?? []
  if (chosen === undefined) throw cancelled()
  return chosen.fsPath
}

export interface ModelChoice {
  readonly kind: 'model' | 'adapter'
  readonly name: string
  readonly path: string
}

/** A model or adapter: what an argument names, else a choice among those that are known, or a folder of the disk. */
export async function pickModel(
  { library }: Services,
  argument: unknown,
  title: string,
  kinds: readonly ('model' | 'adapter')[] = ['model', 'adapter'],
): Promise<ModelChoice> {
  const named = pathOf(argument)
  const models = await library.models()
  if (named !== undefined) {
    const known = models.find(({ path }) => path === named)
    return { kind: known?.kind === 'adapter' ? 'adapter' : 'model', name: known?.name ?? basename(named), path: named }
  }
  const items = models.flatMap(({ kind, name, path, bytes, origin }) =>
    kind === 'gguf' || !kinds.includes(kind)
      ? []
      : [
          {
            label: name,
            description: [
              kind === 'adapter' ? vscode.l10n.t('adapter') : '',
              origin === 'workspace' ? '' : origin,
              formatBytes(bytes),
            ]
              .filter(Boolean)
              .join(' · '),
            iconPath: new vscode.ThemeIcon(kind === 'adapter' ? 'plug' : 'symbol-structure'),
            choice: { kind, name, path },
          },
        ],
  )
  const browse = { label: vscode.l10n.t('Browse…'), iconPath: new vscode.ThemeIcon('folder-opened'), choice: undefined }
  const { choice } = await choose([...items, browse], { title, placeHolder: vscode.l10n.t('Which model?') })
  if (choice !== undefined) return choice
  const [folder] =
    (await vscode.window.showOpenDialog({
      title,
      canSelectFolders: true,
      canSelectFiles: false,
      openLabel: vscode.l10n.t('Use This Model'),
    })) ?? []
  if (folder === undefined) throw cancelled()
  return { kind: 'model', name: folder.fsPath, path: folder.fsPath }
}
