import '@vscode/codicons/dist/codicon.css'
import '../base.css'
import './preview.css'
import type { FromPreview, PreviewState, ToPreview } from '#shared/previewPage.ts'
import { readPreviewState } from '#shared/previewPage.ts'
import { registerControls } from '../controls.ts'
import { connectToHost, reportErrors } from '../vscodeApi.ts'
import { PreviewPage } from './page.ts'

registerControls()
const host = connectToHost<FromPreview, ToPreview, PreviewState>()
reportErrors((message) => host.send({ type: 'trouble', message }))
new PreviewPage(document.getElementById('root')!, host, readPreviewState(host.keptState()).look).start()
