import { fileURLToPath } from 'node:url'
import { isMainThread } from 'node:worker_threads'
import { createConnection, ProposedFeatures } from 'vscode-languageserver/node'
import { LanguageServer } from './languageServer.ts'
import { isBackground, serveBackground, startBackground } from './world/background.ts'

/**
 * The language server's program, over the channel that its command line names (`--node-ipc`, `--stdio`). The bundle of this
 * module is also the thread that plans and counts tokens.
 */
if (isBackground()) serveBackground()
else if (isMainThread) {
  new LanguageServer(createConnection(ProposedFeatures.all), startBackground(fileURLToPath(import.meta.url))).listen()
}
