import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import * as vscode from 'vscode'
import { readSetting } from '../editor.ts'
import { launcherScript } from './launcherScript.ts'
import type { EngineLocation } from './location.ts'

/** Puts the command `unsloth` on the PATH of integrated terminals, where the setting wants it and the engine may run. */
export async function provideTerminalCommand(extension: vscode.ExtensionContext, locate: () => EngineLocation): Promise<void> {
  const variables = extension.environmentVariableCollection
  if (!readSetting('unsloth.terminalCommand')) {
    variables.clear()
    return
  }
  let location: EngineLocation
  try {
    location = locate()
  } catch {
    // Told when a command needs the engine; a terminal is no place to complain.
    variables.clear()
    return
  }
  const folder = join(extension.globalStorageUri.fsPath, 'bin')
  const { name, text } = launcherScript(location)
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, name), text)
  await chmod(join(folder, name), 0o755)
  variables.description = vscode.l10n.t('Adds the command `unsloth`')
  variables.prepend('PATH', `${folder}${process.platform === 'win32' ? ';' : ':'}`)
}
