import * as vscode from 'vscode'
import { tokenProblem } from '../engine/hubToken.ts'
import type { Services } from '../services.ts'
import { cancelled } from './pick.ts'

/** Asks for the Hugging Face token and keeps it in the editor's secret storage. */
export async function setHubToken({ hubToken }: Services): Promise<void> {
  const known = (await hubToken.environment()).HF_TOKEN !== undefined
  const problems = { spaces: vscode.l10n.t('A token has no spaces.'), short: vscode.l10n.t('A token is longer.') }
  const token = await vscode.window.showInputBox({
    title: vscode.l10n.t('Hugging Face Token'),
    password: true,
    ignoreFocusOut: true,
    prompt: known
      ? vscode.l10n.t('For private and gated models. One is kept; an empty line removes it.')
      : vscode.l10n.t('For private and gated models; make one in the settings of your account.'),
    validateInput: (text) => {
      const problem = tokenProblem(text)
      return problem === undefined ? undefined : problems[problem]
    },
  })
  if (token === undefined) throw cancelled()
  await hubToken.set(token.trim())
  void vscode.window.showInformationMessage(
    token.trim() === ''
      ? vscode.l10n.t('No Hugging Face token is kept.')
      : vscode.l10n.t('The Hugging Face token is kept in the secret storage of this editor.'),
  )
}
