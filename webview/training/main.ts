import 'uplot/dist/uPlot.min.css'
import '@vscode/codicons/dist/codicon.css'
import '../base.css'
import './training.css'
import type { FromWebview, PanelState, ToWebview } from '#shared/panelProtocol.ts'
import { readPanelState } from '#shared/panelProtocol.ts'
import { registerControls } from '../controls.ts'
import { connectToHost, reportErrors } from '../vscodeApi.ts'
import { TrainingPage } from './page.ts'

registerControls()
const host = connectToHost<FromWebview, ToWebview, PanelState>()
reportErrors((message) => host.send({ type: 'failed', message }))
new TrainingPage(document.getElementById('root')!, host, readPanelState(host.keptState())).start()
