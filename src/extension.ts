import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { registerCommands } from './commands/register.ts'
import { panelButtons } from './commands/panelButtons.ts'
import { languageId, taskType } from './contributions.ts'
import { readSetting, setContext } from './editor.ts'
import type { LanguageClient } from 'vscode-languageclient/node'
import { DeviceWatch } from './engine/deviceWatch.ts'
import { EngineClient } from './engine/engineClient.ts'
import { tellEnding } from './engine/endings.ts'
import { RunPlaces, watchRuns } from './engine/findRuns.ts'
import { HubToken } from './engine/hubToken.ts'
import { locateEngine, platformProblem } from './engine/location.ts'
import { Problems } from './engine/problems.ts'
import { RunRegistry } from './engine/runRegistry.ts'
import { UnslothTasks } from './engine/tasks.ts'
import { provideTerminalCommand } from './engine/terminal.ts'
import { DatasetLenses, datasetSelector } from './preview/datasetLenses.ts'
import { PreviewPanels } from './preview/previewPanels.ts'
import type { Services } from './services.ts'
import { ReportDocuments } from './status/reportDocuments.ts'
import { StatusBar } from './status/statusBar.ts'
import { TrainingPanels } from './training/panel.ts'
import { RunTrackers } from './training/runTracker.ts'
import { createLibrary, registerTrees, watchLibrary } from './trees/register.ts'

/** What other extensions and the tests get of this one. */
export interface ExtensionApi {
  readonly services: Services
  readonly panels: TrainingPanels
  readonly statusBar: StatusBar
  readonly trees: ReturnType<typeof registerTrees>
  /** Milliseconds that `activate` took. */
  readonly activation: number
  /** Resolves when recipes can be helped with; undefined while no recipe has been opened. */
  languageClient(): Promise<unknown> | undefined
}

export function activate(extension: vscode.ExtensionContext): ExtensionApi {
  const began = performance.now()
  const add = <T extends vscode.Disposable>(item: T): T => {
    extension.subscriptions.push(item)
    return item
  }
  const log = add(vscode.window.createOutputChannel('Unsloth', { log: true }))
  const { version } = extension.extension.packageJSON as { version: string }
  const locate = () => mayRun(extension.extensionPath)
  const hubToken = new HubToken(extension.secrets)
  const engine = add(
    new EngineClient({
      locate,
      version,
      cwd: extension.extensionPath,
      secrets: () => hubToken.environment(),
      log: (line) => log.info(line),
    }),
  )
  const devices = add(new DeviceWatch(engine))
  // The next request starts one that has it.
  add(hubToken.onDidChange(() => void engine.stop()))
  const places = new RunPlaces(extension.workspaceState)
  const runs = add(
    new RunRegistry({ find: () => places.find(), wereLive: places.wereLive, onLive: (dirs) => places.keepLive(dirs) }),
  )
  const problems = new Problems(log)
  const panels = add(
    new TrainingPanels({
      extensionUri: extension.extensionUri,
      trackers: add(new RunTrackers()),
      actions: panelButtons(() => services),
      log: (message) => log.warn(message),
    }),
  )
  const library = createLibrary(extension.extensionPath)
  const previews = add(
    new PreviewPanels({ extensionUri: extension.extensionUri, engine, library, log: (message) => log.warn(message) }),
  )
  const services: Services = {
    extension,
    log,
    engine,
    devices,
    hubToken,
    runs,
    problems,
    locate,
    library,
    previews,
    recipeHelp: () => help.start(),
    reports: add(new ReportDocuments()),
    panels: {
      open(dir, others = []) {
        void places.remember(dir)
        panels.compare([dir, ...others])
      },
    },
  }
  const help = recipeHelp(extension, services)
  add(runs.onDidEnd((ending) => tellEnding(ending, problems, log)))
  extension.subscriptions.push(...registerCommands(services))
  const trees = add(registerTrees(services))
  const statusBar = add(new StatusBar(services))
  add(watchRuns(runs))
  add(watchLibrary(library))
  add(vscode.languages.registerCodeLensProvider(datasetSelector, new DatasetLenses(library)))
  add(vscode.tasks.registerTaskProvider(taskType, new UnslothTasks(locate)))
  const settle = (): void => {
    setContext('unsloth.canRun', vscode.workspace.isTrusted && platformProblem(extension.extensionPath) === undefined)
    provideTerminalCommand(extension, locate).catch((error: unknown) => log.warn(String(error)))
  }
  add(vscode.workspace.onDidGrantWorkspaceTrust(settle))
  add(
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (event.affectsConfiguration('unsloth.engine.path')) void engine.stop()
      if (event.affectsConfiguration('unsloth.engine.path') || event.affectsConfiguration('unsloth.terminalCommand')) settle()
    }),
  )
  settle()
  // Runs go on without the editor: whatever is there now is taken up again.
  runs.refresh().catch((error: unknown) => log.error(String(error)))
  return { services, panels, statusBar, trees, activation: performance.now() - began, languageClient: () => help.started() }
}

/** The engine, where it may run: in a trusted workspace, on a platform with an addon. */
function mayRun(extensionPath: string) {
  if (!vscode.workspace.isTrusted) {
    throw new UnslothError('USAGE', vscode.l10n.t('This workspace is not trusted, so nothing is run here.'), {
      hint: vscode.l10n.t('Trust it with "Workspaces: Manage Workspace Trust"; recipes can be edited meanwhile.'),
    })
  }
  const chosen = readSetting('unsloth.engine.path')
  const problem = chosen === '' ? platformProblem(extensionPath) : undefined
  if (problem !== undefined) throw problem
  return locateEngine(extensionPath, chosen)
}

/** The language server: starts with the first recipe that is opened, or when somebody asks for it. */
function recipeHelp(extension: vscode.ExtensionContext, { log, problems, runs, devices }: Services) {
  let started: Promise<LanguageClient> | undefined
  const start = (): Promise<LanguageClient> => {
    started ??= import('./config/client.ts').then(({ startLanguageClient }) =>
      startLanguageClient(extension, { log, runs, devices }),
    )
    return started
  }
  const begin = (document: vscode.TextDocument): void => {
    if (document.languageId === languageId && started === undefined) start().catch((error: unknown) => problems.show(error))
  }
  extension.subscriptions.push(vscode.workspace.onDidOpenTextDocument(begin))
  for (const document of vscode.workspace.textDocuments) begin(document)
  return { start, started: () => started }
}
