import 'uplot/dist/uPlot.min.css'
import '@vscode/codicons/dist/codicon.css'
import './training.css'
import { readPanelState } from '#shared/panelProtocol.ts'
import { registerControls } from '../controls.ts'
import { connectToHost } from '../vscodeApi.ts'
import { TrainingPage } from './page.ts'

registerControls()
const host = connectToHost()
const fail = (message: string): void => host.send({ type: 'failed', message })
window.addEventListener(
  'error', (event) => fail(event.error instanceof Error ? (event.error.stack ?? event.error.message) : event.message),
)
window.addEventListener(
  'unhandledrejection',
  (event) => fail(event.reason instanceof Error ? (event.reason.stack ?? event.reason.message) : String(event.reason)),
)
new TrainingPage(document.getElementById('root')!, host, readPanelState(host.keptState())).start()
