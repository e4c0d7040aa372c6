import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import * as vscode from 'vscode'
import { stringify } from 'yaml'
import { describeError } from '#shared/errors.ts'
import { engineRequests } from '#shared/protocol.ts'
import { previewStrings, readPreviewState, type FromPreview, type ToPreview } from '#shared/previewPage.ts'
import { readError } from '../../engine/io/fileSystem.ts'
import { debounce, Disposables } from '../editor.ts'
import type { EngineClient } from '../engine/engineClient.ts'
import { panelHtml } from '../training/panelHtml.ts'
import type { Library } from '../trees/library.ts'
import { PreviewSession, type PreviewedRecipe } from './previewSession.ts'

/** The view type: `onWebviewPanel:` activation and the serializer go by it. */
export const previewPanelType = 'unsloth.dataPreview'

/** What is looked at: the data of a recipe, one file as a recipe has it, or one file as a model reads it. Paths are absolute. */
export type PreviewSource =
  { readonly recipe: string; readonly dataset?: string } | { readonly dataset: string; readonly model: string }

function readSource(value: unknown): PreviewSource | undefined {
  const { recipe, dataset, model } = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  if (typeof recipe === 'string') return { recipe, ...(typeof dataset === 'string' ? { dataset } : {}) }
  return typeof dataset === 'string' && typeof model === 'string' ? { dataset, model } : undefined
}

export interface PreviewPanelsOptions {
  readonly extensionUri: vscode.Uri
  readonly engine: EngineClient
  readonly library: Library
  readonly log: (message: string) => void
}

/** All previews of data of the window. */
export class PreviewPanels implements vscode.Disposable {
  readonly #options: PreviewPanelsOptions
  readonly #open = new Map<string, { readonly panel: vscode.WebviewPanel; readonly session: PreviewSession }>()
  readonly #parts = new Disposables()
  readonly #posted = new vscode.EventEmitter<ToPreview>()
  /** Every message to a page, when it has been sent. */
  readonly onDidPost = this.#posted.event

  constructor(options: PreviewPanelsOptions) {
    this.#options = options
    this.#parts.add(this.#posted)
    const changed = this.#parts.add(
      debounce(400, () => {
        for (const { session, panel } of this.#open.values()) if (panel.visible) session.changed()
      }),
    )
    this.#parts.add(options.library.onDidChange(changed))
    this.#parts.add(
      vscode.workspace.onDidChangeTextDocument(({ document: { uri }, contentChanges }) => {
        const shown = [...this.#open.keys()].some((key) => (JSON.parse(key) as { recipe?: string }).recipe === uri.fsPath)
        if (contentChanges.length > 0 && uri.scheme === 'file' && shown) changed()
      }),
    )
    this.#parts.add(
      vscode.window.registerWebviewPanelSerializer(previewPanelType, {
        deserializeWebviewPanel: (panel, state) => {
          const source = readSource(readPreviewState(state).source)
          if (source === undefined) panel.dispose()
          else this.#attach(panel, source)
          return Promise.resolve()
        },
      }),
    )
  }

  get panels(): readonly vscode.WebviewPanel[] {
    return [...this.#open.values()].map(({ panel }) => panel)
  }

  /** Shows a preview: the one that is open already, or a new one. */
  open(source: PreviewSource): void {
    const open = this.#open.get(JSON.stringify(source))
    if (open !== undefined) {
      open.panel.reveal()
      open.session.changed()
      return
    }
    const viewColumn = vscode.window.activeTextEditor === undefined ? vscode.ViewColumn.Active : vscode.ViewColumn.Beside
    this.#attach(
      vscode.window.createWebviewPanel(previewPanelType, titleOf(source), { viewColumn }, { enableFindWidget: true }),
      source,
    )
  }

  dispose(): void {
    for (const { panel } of this.#open.values()) panel.dispose()
    this.#parts.dispose()
  }

  #attach(panel: vscode.WebviewPanel, source: PreviewSource): void {
    const { extensionUri, engine, log } = this.#options
    const { webview } = panel
    const title = titleOf(source)
    const session = new PreviewSession({
      title,
      source,
      log,
      strings: Object.fromEntries(Object.entries(previewStrings).map(([key, text]) => [key, vscode.l10n.t(text)])),
      read: () => recipeOf(source),
      ask: (params, signal) => engine.request(engineRequests.preview, params, { signal }),
      post: async (message) => {
        await webview.postMessage(message)
        this.#posted.fire(message)
      },
      openRow: (file, line) => void showRow(file, line, log),
      openRecipe: () => void vscode.window.showTextDocument(vscode.Uri.file('recipe' in source ? source.recipe : source.dataset)),
    })
    this.#open.set(JSON.stringify(source), { panel, session })
    webview.onDidReceiveMessage(
      (message: FromPreview) => void session.handle(message).catch((error: unknown) => log(describeError(error))),
    )
    panel.onDidDispose(() => {
      session.dispose()
      this.#open.delete(JSON.stringify(source))
    })
    panel.title = title
    panel.iconPath = new vscode.ThemeIcon('table')
    const dist = vscode.Uri.joinPath(extensionUri, 'dist', 'webview')
    const file = (name: string): string => String(webview.asWebviewUri(vscode.Uri.joinPath(dist, name)))
    webview.options = { enableScripts: true, localResourceRoots: [dist] }
    webview.html = panelHtml({
      cspSource: webview.cspSource,
      nonce: nonce(),
      styleNonce: nonce(),
      title,
      language: vscode.env.language,
      scriptUri: file('preview.js'),
      styleUri: file('preview.css'),
    })
  }
}

const nonce = (): string => randomBytes(16).toString('base64')

const titleOf = (source: PreviewSource): string =>
  vscode.l10n.t('Data of {0}', basename(source.dataset ?? ('recipe' in source ? source.recipe : '')))

/** The recipe as it stands in the editor, saved or not. */
async function recipeOf(source: PreviewSource): Promise<PreviewedRecipe> {
  if (!('recipe' in source)) {
    const { dataset, model } = source
    return {
      recipe: stringify({ version: 1, model, data: { local_dataset: dataset } }),
      path: join(dirname(dataset), 'finetune.yaml'),
    }
  }
  const { recipe: path, dataset } = source
  const open = vscode.workspace.textDocuments.find(({ uri }) => uri.scheme === 'file' && uri.fsPath === path)
  const recipe =
    open?.getText() ??
    (await readFile(path, 'utf8').catch((error: unknown) => {
      throw readError(error, path, 'recipe')
    }))
  return { recipe, path, ...(dataset === undefined ? {} : { overrides: { 'data.local_dataset': [dataset] } }) }
}

/** Opens a file at a row; the editor itself refuses what is too large for it. */
async function showRow(file: string, line: number, log: (message: string) => void): Promise<void> {
  try {
    const at = new vscode.Position(line - 1, 0)
    await vscode.commands.executeCommand('vscode.open', vscode.Uri.file(file), {
      selection: new vscode.Range(at, at),
      preview: true,
    })
  } catch (error) {
    log(describeError(error))
  }
}
