import * as vscode from 'vscode'
import { views } from '../contributions.ts'
import { debounce, Disposables, readSetting, setContext } from '../editor.ts'
import type { Services } from '../services.ts'
import { Library } from './library.ts'
import type { TreeNode } from './nodes.ts'
import { DatasetsProvider, ModelsProvider, RunsProvider } from './providers.ts'

/** The three trees of the activity bar. */
export interface Trees extends vscode.Disposable {
  readonly models: ModelsProvider
  readonly datasets: DatasetsProvider
  readonly runs: RunsProvider
  readonly runsView: vscode.TreeView<TreeNode>
  readonly datasetDrops: vscode.TreeDragAndDropController<TreeNode>
}

export function registerTrees({ runs, library, problems }: Pick<Services, 'runs' | 'library' | 'problems'>): Trees {
  const parts = new Disposables()
  const providers = { models: new ModelsProvider(library), datasets: new DatasetsProvider(library), runs: new RunsProvider(runs) }
  const datasetDrops = dropController(library, problems)
  parts.add(vscode.window.createTreeView(views.models, { treeDataProvider: providers.models, showCollapseAll: true }))
  parts.add(
    vscode.window.createTreeView(views.datasets, {
      treeDataProvider: providers.datasets,
      showCollapseAll: true,
      dragAndDropController: datasetDrops,
    }),
  )
  const runsView = parts.add(
    vscode.window.createTreeView(views.runs, { treeDataProvider: providers.runs, showCollapseAll: true, canSelectMany: true }),
  )
  const show = (): void => {
    const live = runs.live.length
    runsView.badge =
      live === 0
        ? undefined
        : { value: live, tooltip: live === 1 ? vscode.l10n.t('1 run is working') : vscode.l10n.t('{0} runs are working', live) }
    setContext('unsloth.liveRuns', live)
    setContext('unsloth.hasRuns', runs.views.length > 0)
    if (runs.views.some(({ state }) => state === 'finished')) setContext('unsloth.hasFinishedRun', true)
  }
  parts.add(runs.onDidChange(show))
  return { ...providers, runsView, datasetDrops, dispose: () => parts.dispose() }
}

/** Files dropped onto Datasets are copied into the workspace. */
function dropController(library: Library, problems: Services['problems']): vscode.TreeDragAndDropController<TreeNode> {
  return {
    dropMimeTypes: ['text/uri-list', 'files'],
    dragMimeTypes: ['text/uri-list'],
    handleDrag(nodes, data) {
      data.set(
        'text/uri-list',
        new vscode.DataTransferItem(nodes.map(({ path }) => vscode.Uri.file(path).toString()).join('\r\n')),
      )
    },
    async handleDrop(_, data) {
      try {
        const { uris, files } = await dropped(data)
        if (uris.length + files.length === 0) return
        const [{ pickWorkspaceFolder }, { addDatasets, addFiles }] = await Promise.all([
          import('../commands/pick.ts'),
          import('../commands/newRecipe.ts'),
        ])
        const folder = await pickWorkspaceFolder(vscode.l10n.t('Add Data Set'))
        await addDatasets(uris, folder)
        await addFiles(files, folder)
        library.invalidate()
      } catch (error) {
        problems.show(error)
      }
    },
  }
}

/** What was dropped: files that the editor can name, and files of another machine, as of the desktop in front of a remote window. */
async function dropped(
  data: vscode.DataTransfer,
): Promise<{ readonly uris: vscode.Uri[]; readonly files: vscode.DataTransferFile[] }> {
  const list = (await data.get('text/uri-list')?.asString()) ?? ''
  const uris = list
    .split(/\r?\n/)
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => vscode.Uri.parse(line, true))
  const files = uris.length > 0 ? [] : [...data].flatMap(([, item]) => item.asFile() ?? [])
  return { uris: [...uris, ...files.flatMap(({ uri }) => uri ?? [])], files: files.filter(({ uri }) => uri === undefined) }
}

/** The library of this window's workspace folders and settings. */
export function createLibrary(extensionPath: string): Library {
  return new Library({
    extensionPath,
    roots: () =>
      (vscode.workspace.workspaceFolders ?? [])
        .filter(({ uri }) => uri.scheme === 'file')
        .map(({ name, uri }) => ({ name, path: uri.fsPath })),
    modelFolders: () => readSetting('unsloth.modelFolders'),
    hubCache: () => readSetting('unsloth.showHubCache'),
    findFiles: async (pattern) =>
      (await vscode.workspace.findFiles(pattern, '**/{node_modules,.git}/**', 500))
        .filter(({ scheme }) => scheme === 'file')
        .map(({ fsPath }) => fsPath),
  })
}

/** Files that processes of runs write all the time and that are no data. */
const runFile = /[/\\](?:status|heartbeat|control|checkpoint|package-lock|\.tmp-[^/\\]*)\.json$|[/\\]checkpoints[/\\]/

export function watchLibrary(library: Library): vscode.Disposable {
  const parts = new Disposables()
  const look = parts.add(debounce(800, () => library.invalidate()))
  const watcher = parts.add(vscode.workspace.createFileSystemWatcher('**/*.{safetensors,gguf,jsonl,ndjson,json,csv,tsv,parquet}'))
  const changed = ({ path }: vscode.Uri): void => {
    if (!runFile.test(path)) look()
  }
  watcher.onDidCreate(changed)
  watcher.onDidDelete(changed)
  watcher.onDidChange(({ path }) => {
    // Of a model only its coming and going matters; rows of a data set are counted again.
    if (/\.(jsonl|ndjson|csv|tsv|parquet)$/.test(path) && !/[/\\]metrics\.jsonl$/.test(path)) look()
  })
  parts.add(vscode.workspace.onDidChangeWorkspaceFolders(look))
  parts.add(
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (event.affectsConfiguration('unsloth.modelFolders') || event.affectsConfiguration('unsloth.showHubCache')) look()
    }),
  )
  return parts
}
