import 'uplot/dist/uPlot.min.css'
import '@vscode/codicons/dist/codicon.css'
import './training.css'
import { readPanelState } from '#shared/panelProtocol.ts'
import { registerControls } from '../controls.ts'
import { connectToHost } from '../vscodeApi.ts'
import { TrainingPage } from './page.ts'

registerControls()
const host = connectToHost()
const fail = (error: unknown): void =>
  host.send({ type: 'failed', message: error instanceof Error ? (error.stack ?? error.message) : String(error) })
window.addEventListener('error', (event) => fail(event.error ?? event.message))
window.addEventListener('unhandledrejection', (event) => fail(event.reason))
new TrainingPage(document.getElementById('root')!, host, readPanelState(host.keptState())).start()
