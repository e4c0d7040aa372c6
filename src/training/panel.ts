import { randomBytes } from 'node:crypto'
import { basename, dirname, join, resolve } from 'node:path'
import * as vscode from 'vscode'
import { describeError } from '#shared/errors.ts'
import type { FromWebview, RunInfo, ToWebview } from '#shared/panelProtocol.ts'
import { readPanelState } from '#shared/panelProtocol.ts'
import { panelStrings } from '#shared/panelStrings.ts'
import { writeFileAtomic } from '../../engine/io/atomicFile.ts'
import { csvChunks, writeChunks } from './exportCsv.ts'
import { panelHtml } from './panelHtml.ts'
import type { TrainingActions } from './panelSession.ts'
import { PanelSession } from './panelSession.ts'
import type { RunTrackers, TrackedRun } from './runTracker.ts'

/** The view type: `onWebviewPanel:` activation and the serializer go by it. */
export const trainingPanelType = 'unsloth.trainingPanel'

export interface TrainingPanelsOptions {
  readonly extensionUri: vscode.Uri
  readonly trackers: RunTrackers
  readonly actions: TrainingActions
  readonly log: (message: string) => void
}

export interface OpenOptions {
  readonly column?: vscode.ViewColumn
  readonly preserveFocus?: boolean
}

/** All training panels of the window. */
export class TrainingPanels implements vscode.Disposable {
  readonly #options: TrainingPanelsOptions
  readonly #panels = new Set<TrainingPanel>()
  readonly #disposables: vscode.Disposable[] = []
  readonly #received = new vscode.EventEmitter<{ readonly panel: TrainingPanel; readonly message: FromWebview }>()
  readonly #posted = new vscode.EventEmitter<{ readonly panel: TrainingPanel; readonly message: ToWebview }>()
  /** Every message of a page, before it is handled. */
  readonly onDidReceive = this.#received.event
  /** Every message to a page, when it has been sent. */
  readonly onDidPost = this.#posted.event

  constructor(options: TrainingPanelsOptions) {
    this.#options = options
    this.#disposables.push(
      this.#received,
      this.#posted,
      vscode.window.registerWebviewPanelSerializer(trainingPanelType, {
        deserializeWebviewPanel: (panel, state) => {
          const { runs } = readPanelState(state)
          // Nothing to show, as after a damaged state: an empty panel would say nothing.
          if (runs.length === 0) panel.dispose()
          else this.#attach(panel, runs)
          return Promise.resolve()
        },
      }),
    )
  }

  get panels(): readonly TrainingPanel[] {
    return [...this.#panels]
  }

  /** Shows a run: in the panel that shows it alone already, or in a new one. */
  open(runDir: string, options: OpenOptions = {}): TrainingPanel {
    return this.compare([runDir], options)
  }

  /** Shows runs laid over each other; the first one has the header. */
  compare(runDirs: readonly string[], options: OpenOptions = {}): TrainingPanel {
    const runs = [...new Set(runDirs.map((dir) => resolve(dir)))]
    const open = this.panels.find(
      ({ session }) => session.runs.length === runs.length && runs.every((dir) => session.runs.includes(dir)),
    )
    if (open !== undefined) {
      open.panel.reveal(options.column, options.preserveFocus)
      return open
    }
    const viewColumn = options.column ?? vscode.ViewColumn.Beside
    const panel = vscode.window.createWebviewPanel(
      trainingPanelType,
      vscode.l10n.t('Training'),
      { viewColumn, preserveFocus: options.preserveFocus ?? false },
      { enableFindWidget: true },
    )
    return this.#attach(panel, runs)
  }

  dispose(): void {
    for (const panel of this.#panels) panel.panel.dispose()
    for (const disposable of this.#disposables) disposable.dispose()
  }

  #attach(panel: vscode.WebviewPanel, runs: readonly string[]): TrainingPanel {
    const training = new TrainingPanel(panel, runs, this.#options, {
      received: (message) => this.#received.fire({ panel: training, message }),
      posted: (message) => this.#posted.fire({ panel: training, message }),
    })
    this.#panels.add(training)
    panel.onDidDispose(() => this.#panels.delete(training))
    return training
  }
}

interface Traffic {
  readonly received: (message: FromWebview) => void
  readonly posted: (message: ToWebview) => void
}

/** One panel of the editor around a session. */
export class TrainingPanel {
  readonly panel: vscode.WebviewPanel
  readonly session: PanelSession

  constructor(
    panel: vscode.WebviewPanel,
    runs: readonly string[],
    { extensionUri, trackers, actions, log }: TrainingPanelsOptions,
    traffic: Traffic,
  ) {
    this.panel = panel
    const { webview } = panel
    const dist = vscode.Uri.joinPath(extensionUri, 'dist', 'webview')
    this.session = new PanelSession({
      post: async (message) => {
        const delivered = await webview.postMessage(message)
        traffic.posted(message)
        return delivered
      },
      trackers,
      actions,
      log,
      strings: localized(),
      saveCsv: (shown) => this.#report(saveCsv(shown)),
      savePng: (png) => this.#report(savePng(png, this.session.runs[0])),
      onRuns: (infos) => (panel.title = titleOf(infos)),
    })
    webview.onDidReceiveMessage((message: FromWebview) => {
      traffic.received(message)
      void this.session.handle(message).catch((error: unknown) => log(describeError(error)))
    })
    panel.onDidChangeViewState(() => {
      // The page of a hidden panel does not live on: the next one says `ready`.
      if (!panel.visible) this.session.pageGone()
      this.session.setVisible(panel.visible)
    })
    panel.onDidDispose(() => this.session.dispose())
    for (const run of runs) this.session.add(run)
    panel.iconPath = new vscode.ThemeIcon('graph-line')
    webview.options = { enableScripts: true, localResourceRoots: [dist] }
    webview.html = panelHtml({
      cspSource: webview.cspSource,
      nonce: nonce(),
      styleNonce: nonce(),
      title: panel.title,
      language: vscode.env.language,
      scriptUri: String(webview.asWebviewUri(vscode.Uri.joinPath(dist, 'training.js'))),
      styleUri: String(webview.asWebviewUri(vscode.Uri.joinPath(dist, 'training.css'))),
    })
  }

  /** Shows a further run in this panel. */
  add(runDir: string): void {
    this.session.add(runDir)
  }

  async #report(work: Promise<void>): Promise<void> {
    try {
      await work
    } catch (error) {
      void vscode.window.showErrorMessage(describeError(error))
    }
  }
}

const nonce = (): string => randomBytes(16).toString('base64')

const localized = (): Record<string, string> =>
  Object.fromEntries(Object.entries(panelStrings).map(([key, text]) => [key, vscode.l10n.t(text)]))

function titleOf(infos: readonly RunInfo[]): string {
  const names = infos.map(({ name }) => name)
  if (names.length < 2) return names[0] ?? vscode.l10n.t('Training')
  return names.length === 2 ? `${names[0]} ↔ ${names[1]}` : vscode.l10n.t('{0} and {1} more', names[0]!, names.length - 1)
}

async function saveCsv(runs: readonly TrackedRun[]): Promise<void> {
  const [first] = runs
  if (first === undefined) return
  const target = await askWhere(first.dir, `${basename(first.dir)}.csv`, { CSV: ['csv'] })
  if (target === undefined) return
  const chunks = csvChunks(runs.map((run) => ({ name: run.info().name, series: run.series })))
  if (target.scheme === 'file') await writeChunks(target.fsPath, chunks)
  else await vscode.workspace.fs.writeFile(target, Buffer.from([...chunks].join('')))
  await offerToOpen(target)
}

async function savePng(png: Uint8Array, run: string | undefined): Promise<void> {
  if (run === undefined) return
  const target = await askWhere(run, `${basename(run)}.png`, { PNG: ['png'] })
  if (target === undefined) return
  if (target.scheme === 'file') await writeFileAtomic(target.fsPath, png)
  else await vscode.workspace.fs.writeFile(target, png)
  await offerToOpen(target)
}

const askWhere = (runDir: string, name: string, filters: Record<string, string[]>): Thenable<vscode.Uri | undefined> =>
  vscode.window.showSaveDialog({ defaultUri: vscode.Uri.file(join(dirname(runDir), name)), filters })

async function offerToOpen(target: vscode.Uri): Promise<void> {
  const open = vscode.l10n.t('Open')
  const chosen = await vscode.window.showInformationMessage(
    vscode.l10n.t('Saved {0}.', vscode.workspace.asRelativePath(target)),
    open,
  )
  if (chosen === open) await vscode.commands.executeCommand('vscode.open', target)
}
