import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { TextDocument } from 'vscode-languageserver-textdocument'
import {
  TextDocuments,
  TextDocumentSyncKind,
  type Connection,
  type InitializeParams,
  type InitializeResult,
} from 'vscode-languageserver/node'
import { codeActions, fixAll, actionKinds } from './quickFixes.ts'
import { serverMessages } from './commands.ts'
import { complete, triggerCharacters } from './completion.ts'
import { diagnoseSchema, type SchemaDiagnosis } from './diagnostics.ts'
import { formatEdits } from './format.ts'
import { inlayHints } from './hints.ts'
import { hover } from './hover.ts'
import { codeLenses } from './lenses.ts'
import { migrateForeign } from './migrate/migrate.ts'
import { Outline } from './outline.ts'
import { documentSymbols, foldingRanges } from './symbols.ts'
import { applyEdits, SourceText } from './text.ts'
import { t, useTranslations } from './texts.ts'
import type { FoundDevice, Workspace } from './workspace.ts'
import { emptyWorkspace } from './workspace.ts'
import type { Background } from './world/background.ts'
import { World } from './world/nodeWorkspace.ts'
import { diagnoseWorld } from './worldChecks.ts'

/** Milliseconds of rest in typing after which a text is checked. */
const settle = 120

/** Milliseconds that problems of the text wait for those of the world. */
const patience = 300

/** A recipe that is open, read once for each of its versions. */
interface Opened {
  readonly version: number
  readonly source: SourceText
  readonly outline: Outline
  readonly schema: SchemaDiagnosis
}

/**
 * Puts the services on a connection. Every request is answered from the text as it stands; failures of one do not end the
 * server.
 */
export class LanguageServer {
  private readonly connection: Connection
  private readonly background: Background
  private readonly documents = new TextDocuments(TextDocument)
  private readonly opened = new Map<string, Opened>()
  private readonly timers = new Map<string, NodeJS.Timeout>()
  private world: World | undefined
  private refreshes = { lenses: false, hints: false }

  constructor(connection: Connection, background: Background) {
    this.connection = connection
    this.background = background
  }

  /** Starts to answer. */
  listen(): void {
    const { connection, documents } = this
    connection.onInitialize((params) => this.initialize(params))
    connection.onInitialized(() => this.world?.warmUp())
    connection.onShutdown(() => this.world?.dispose())
    documents.onDidChangeContent(({ document }) => this.check(document.uri))
    documents.onDidClose(({ document }) => this.close(document.uri))
    connection.onCompletion(({ textDocument, position }) =>
      this.answer(textDocument.uri, [], ({ source }, workspace) => complete(source, position, workspace)),
    )
    connection.onHover(({ textDocument, position }) =>
      this.answer(textDocument.uri, null, ({ source }, workspace) => hover(source, position, workspace)),
    )
    connection.onCodeLens(({ textDocument }) =>
      this.answer(textDocument.uri, [], ({ schema }, workspace) => codeLenses(textDocument.uri, schema.recipe, workspace)),
    )
    connection.languages.inlayHint.on(({ textDocument, range }) =>
      this.answer(textDocument.uri, [], ({ outline, schema }, workspace) => inlayHints(outline, schema.recipe, workspace, range)),
    )
    connection.onDocumentSymbol(({ textDocument }) => this.answer(textDocument.uri, [], ({ source }) => documentSymbols(source)))
    connection.onFoldingRanges(({ textDocument }) => this.answer(textDocument.uri, [], ({ source }) => foldingRanges(source)))
    connection.onDocumentFormatting(({ textDocument }) => this.answer(textDocument.uri, [], ({ source }) => formatEdits(source)))
    connection.onCodeAction(({ textDocument: { uri }, range, context }) =>
      this.answer(uri, [], ({ source }) =>
        context.only?.some((kind) => kind.startsWith('source')) === true
          ? this.fixAll(uri, source)
          : codeActions(source, uri, range, context.diagnostics),
      ),
    )
    connection.onDidChangeWatchedFiles(() => this.refresh())
    connection.onNotification(serverMessages.devices, ({ devices }: { devices: readonly FoundDevice[] | null }) => {
      this.world?.setDevices(devices ?? undefined)
      this.refresh()
    })
    connection.onNotification(serverMessages.runsChanged, () => this.refresh())
    connection.onRequest(serverMessages.migrate, ({ text }: { text: string }) => migrateForeign(text) ?? null)
    documents.listen(connection)
    connection.listen()
  }

  private initialize({ workspaceFolders, capabilities, initializationOptions }: InitializeParams): InitializeResult {
    const options = (initializationOptions ?? {}) as { hubCache?: string; translations?: Readonly<Record<string, string>> }
    useTranslations(options.translations ?? {})
    const roots = (workspaceFolders ?? []).map(({ uri }) => pathOf(uri)).filter((path) => path !== undefined)
    this.world = new World({
      roots,
      background: this.background,
      ...(options.hubCache === undefined ? {} : { hubCache: options.hubCache }),
    })
    this.refreshes = {
      lenses: capabilities.workspace?.codeLens?.refreshSupport === true,
      hints: capabilities.workspace?.inlayHint?.refreshSupport === true,
    }
    if (capabilities.workspace?.workspaceFolders === true) this.connection.onInitialized(() => this.watchFolders())
    return {
      serverInfo: { name: 'unsloth recipes' },
      capabilities: {
        textDocumentSync: TextDocumentSyncKind.Incremental,
        completionProvider: { triggerCharacters },
        hoverProvider: true,
        codeLensProvider: { resolveProvider: false },
        inlayHintProvider: true,
        documentSymbolProvider: true,
        foldingRangeProvider: true,
        documentFormattingProvider: true,
        codeActionProvider: { codeActionKinds: [...actionKinds] },
        workspace: { workspaceFolders: { supported: true, changeNotifications: true } },
      },
    }
  }

  private watchFolders(): void {
    this.world?.warmUp()
    this.connection.workspace.onDidChangeWorkspaceFolders(() => {
      void this.connection.workspace.getWorkspaceFolders().then(
        (folders) => {
          this.world?.setRoots((folders ?? []).map(({ uri }) => pathOf(uri)).filter((path) => path !== undefined))
        },
        () => undefined,
      )
    })
  }

  /** The text of a document with what it says, read once for each version. */
  private open(uri: string): Opened | undefined {
    const document = this.documents.get(uri)
    if (document === undefined) return undefined
    const known = this.opened.get(uri)
    if (known?.version === document.version) return known
    const source = new SourceText(document.getText())
    const opened: Opened = {
      version: document.version,
      source,
      outline: new Outline(source),
      schema: diagnoseSchema(source, pathOf(uri) ?? 'finetune.yaml'),
    }
    this.opened.set(uri, opened)
    return opened
  }

  private workspaceOf(uri: string): Workspace {
    const path = pathOf(uri)
    return path === undefined || this.world === undefined ? emptyWorkspace : this.world.at(dirname(path))
  }

  private async answer<T>(uri: string, otherwise: T, work: (opened: Opened, workspace: Workspace) => T | Promise<T>): Promise<T> {
    try {
      const opened = this.open(uri)
      return opened === undefined ? otherwise : await work(opened, this.workspaceOf(uri))
    } catch (error) {
      this.connection.console.error(error instanceof Error ? (error.stack ?? error.message) : String(error))
      return otherwise
    }
  }

  private fixAll(uri: string, source: SourceText) {
    const text = fixAll(source.text, (current) => diagnoseSchema(current, pathOf(uri) ?? 'finetune.yaml').problems, applyEdits)
    if (text === source.text) return []
    return [
      {
        title: t('Fix all problems that have one answer'),
        kind: 'source.fixAll',
        edit: { changes: { [uri]: [source.edit({ start: 0, end: source.text.length }, text)] } },
      },
    ]
  }

  /** Checks a text soon: at first what it says itself, then what the world says to it. */
  private check(uri: string): void {
    clearTimeout(this.timers.get(uri))
    this.timers.set(
      uri,
      setTimeout(() => void this.publish(uri), settle),
    )
  }

  private async publish(uri: string): Promise<void> {
    this.timers.delete(uri)
    await this.answer(uri, undefined, async (opened, workspace) => {
      const { version, schema, outline } = opened
      const send = (diagnostics: SchemaDiagnosis['problems']): void => {
        if (this.documents.get(uri)?.version === version) void this.connection.sendDiagnostics({ uri, version, diagnostics })
      }
      // Without a place on the disk nothing is known of what a recipe names.
      if (schema.foreign !== undefined || workspace === emptyWorkspace) return send(schema.problems)
      const world = diagnoseWorld(outline, schema.recipe, workspace)
      // What the text says does not wait for a slow disk; but when both come at once, they come together and nothing flickers.
      const slow = setTimeout(() => send(schema.problems), patience)
      try {
        send([...schema.problems, ...(await world)])
      } catch (error) {
        send(schema.problems)
        throw error
      } finally {
        clearTimeout(slow)
      }
    })
  }

  private close(uri: string): void {
    clearTimeout(this.timers.get(uri))
    this.timers.delete(uri)
    this.opened.delete(uri)
    void this.connection.sendDiagnostics({ uri, diagnostics: [] })
  }

  /** The world changed: everything that shows it is asked for again. */
  private refresh(): void {
    this.world?.invalidate()
    for (const { uri } of this.documents.all()) this.check(uri)
    if (this.refreshes.lenses) this.connection.sendRequest('workspace/codeLens/refresh').catch(() => undefined)
    if (this.refreshes.hints) this.connection.languages.inlayHint.refresh().catch(() => undefined)
  }
}

/** The path of a file's URI; undefined for texts that stand in no file. */
function pathOf(uri: string): string | undefined {
  try {
    return uri.startsWith('file:') ? fileURLToPath(uri) : undefined
  } catch {
    return undefined
  }
}
