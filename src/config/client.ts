import { existsSync } from 'node:fs'
import * as vscode from 'vscode'
import {
  LanguageClient,
  RevealOutputChannelOn,
  TransportKind,
  type LanguageClientOptions,
  type ServerOptions,
} from 'vscode-languageclient/node'
import { UnslothError } from '#shared/errors.ts'
import type { DeviceEntry } from '#shared/protocol.ts'
import { languageId } from '../contributions.ts'
import type { Services } from '../services.ts'
import { serverMessages } from '../language/commands.ts'

/** Starts the language server of recipes, a process of its own. It computes without the engine, so that it works in any workspace. */
export async function startLanguageClient(
  extension: vscode.ExtensionContext,
  { log, runs, devices }: Pick<Services, 'log' | 'runs' | 'devices'>,
): Promise<LanguageClient> {
  const module = vscode.Uri.joinPath(extension.extensionUri, 'dist', 'languageServer.cjs').fsPath
  if (!existsSync(module))
    throw new UnslothError('INTERNAL', `The language server is not at ${module}.`, { hint: 'Install the extension again.' })
  const server: ServerOptions = {
    run: { module, transport: TransportKind.ipc },
    debug: { module, transport: TransportKind.ipc, options: { execArgv: ['--nolazy', '--inspect=6019'] } },
  }
  const options: LanguageClientOptions = {
    documentSelector: [{ language: languageId }],
    outputChannel: log,
    initializationOptions: { translations: vscode.l10n.bundle ?? {} },
    revealOutputChannelOn: RevealOutputChannelOn.Never,
    synchronize: { fileEvents: vscode.workspace.createFileSystemWatcher('**/*.{jsonl,json,safetensors}') },
  }
  const client = new LanguageClient('unsloth.recipe', vscode.l10n.t('Recipe help'), server, options)
  await client.start()
  // A lens offers to go on with an interrupted run: it is asked for again when a run begins or ends.
  let known = ''
  const follow = runs.onDidChange(() => {
    const states = runs.views.map(({ dir, state, checkpoint }) => `${dir} ${state} ${checkpoint?.step}`).join('\n')
    if (states === known) return
    known = states
    if (client.isRunning()) void client.sendNotification(serverMessages.runsChanged, {})
  })
  // What is free of the memory, as the engine that runs sees it.
  const tell = (found: readonly DeviceEntry[] | undefined): void => {
    if (client.isRunning()) void client.sendNotification(serverMessages.devices, { devices: found ?? null })
  }
  const watch = devices.onDidChange(tell)
  if (devices.devices !== undefined) tell(devices.devices)
  extension.subscriptions.push(client, follow, watch)
  return client
}
