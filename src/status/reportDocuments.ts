import * as vscode from 'vscode'
import { reportScheme } from '../contributions.ts'

/** Read-only documents that commands write: plans, reports, generated text. They live as long as their editor is open. */
export class ReportDocuments implements vscode.TextDocumentContentProvider, vscode.Disposable {
  readonly #texts = new Map<string, string>()
  readonly #changed = new vscode.EventEmitter<vscode.Uri>()
  readonly onDidChange = this.#changed.event
  readonly #subscriptions: vscode.Disposable[]
  #count = 0

  constructor() {
    this.#subscriptions = [
      this.#changed,
      vscode.workspace.registerTextDocumentContentProvider(reportScheme, this),
      vscode.workspace.onDidCloseTextDocument(({ uri }) => {
        if (uri.scheme === reportScheme) this.#texts.delete(uri.toString())
      }),
    ]
  }

  provideTextDocumentContent(uri: vscode.Uri): string {
    return (
      this.#texts.get(uri.toString()) ?? vscode.l10n.t('This report is gone with the window that made it. Run its command again.')
    )
  }

  /** Opens a new document; its title is `name`, whose ending decides the language. */
  async show(name: string, text: string, column?: vscode.ViewColumn): Promise<vscode.Uri> {
    // The number stands in the query, where nobody sees it: two reports of one name are two documents.
    const uri = vscode.Uri.from({ scheme: reportScheme, path: `/${name.replaceAll('/', '∕')}`, query: String(++this.#count) })
    this.#texts.set(uri.toString(), text)
    const document = await vscode.workspace.openTextDocument(uri)
    await vscode.window.showTextDocument(document, { preview: false, ...(column === undefined ? {} : { viewColumn: column }) })
    return uri
  }

  /** Puts other text into an open document. False when the user has closed it. */
  update(uri: vscode.Uri, text: string): boolean {
    if (!this.#texts.has(uri.toString())) return false
    this.#texts.set(uri.toString(), text)
    this.#changed.fire(uri)
    return true
  }

  dispose(): void {
    for (const subscription of this.#subscriptions) subscription.dispose()
  }
}
