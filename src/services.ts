import type * as vscode from 'vscode'
import type { LanguageClient } from 'vscode-languageclient/node'
import type { EngineClient } from './engine/engineClient.ts'
import type { DeviceWatch } from './engine/deviceWatch.ts'
import type { HubToken } from './engine/hubToken.ts'
import type { EngineLocation } from './engine/location.ts'
import type { RunRegistry } from './engine/runRegistry.ts'
import type { PreviewPanels } from './preview/previewPanels.ts'
import type { Problems } from './engine/problems.ts'
import type { ReportDocuments } from './status/reportDocuments.ts'
import type { Library } from './trees/library.ts'

/** Opens the training panel. */
export interface Panels {
  /** Shows a run, with others laid over it. */
  open(dir: string, others?: readonly string[]): void
}

/** What commands and views are made of; built once in `activate`. */
export interface Services {
  readonly extension: vscode.ExtensionContext
  readonly log: vscode.LogOutputChannel
  readonly engine: EngineClient
  readonly devices: DeviceWatch
  readonly hubToken: HubToken
  readonly runs: RunRegistry
  readonly library: Library
  readonly panels: Panels
  readonly previews: PreviewPanels
  readonly problems: Problems
  readonly reports: ReportDocuments
  /** The engine to start; throws when it may not run here. */
  readonly locate: () => EngineLocation
  /** The language server of recipes, started when it is not running yet. */
  readonly recipeHelp: () => Promise<LanguageClient>
}
