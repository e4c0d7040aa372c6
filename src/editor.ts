import * as vscode from 'vscode'
import type { CommandId, CommandSignatures, ContextKey, ContextKeys, SettingName, Settings } from './contributions.ts'

/** Typed doors to the editor's registries of names. */

export function registerCommand<K extends CommandId>(id: K, run: CommandSignatures[K]): vscode.Disposable {
  return vscode.commands.registerCommand(id, run)
}

export function runCommand<K extends CommandId>(
  id: K,
  ...args: Parameters<CommandSignatures[K]>
): Thenable<Awaited<ReturnType<CommandSignatures[K]>>> {
  return vscode.commands.executeCommand(id, ...args)
}

/** A command as links, lenses and tree items carry it. */
export function asCommand<K extends CommandId>(id: K, title: string, ...args: Parameters<CommandSignatures[K]>): vscode.Command {
  return { command: id, title, arguments: args }
}

/** The command as a link of trusted Markdown. */
export function commandLink<K extends CommandId>(id: K, text: string, ...args: Parameters<CommandSignatures[K]>): string {
  const query = args.length === 0 ? '' : `?${encodeURIComponent(JSON.stringify(args))}`
  return `[${text}](command:${id}${query})`
}

export function readSetting<K extends SettingName>(name: K, scope?: vscode.ConfigurationScope): Settings[K] {
  return vscode.workspace.getConfiguration(undefined, scope).get<Settings[K]>(name)!
}

export async function writeSetting<K extends SettingName>(name: K, value: Settings[K]): Promise<void> {
  const configuration = vscode.workspace.getConfiguration()
  const inWorkspace = configuration.inspect(name)?.workspaceValue !== undefined
  await configuration.update(name, value, inWorkspace ? vscode.ConfigurationTarget.Workspace : vscode.ConfigurationTarget.Global)
}

const contexts = new Map<ContextKey, unknown>()

/** Tells `when` clauses, when the value is another one. */
export function setContext<K extends ContextKey>(key: K, value: ContextKeys[K]): void {
  if (contexts.get(key) === value) return
  contexts.set(key, value)
  void vscode.commands.executeCommand('setContext', key, value)
}

/** Disposes what it holds at once; what arrives later is disposed immediately. */
export class Disposables implements vscode.Disposable {
  readonly #items: vscode.Disposable[] = []
  #disposed = false

  add<T extends vscode.Disposable>(item: T): T {
    if (this.#disposed) item.dispose()
    else this.#items.push(item)
    return item
  }

  dispose(): void {
    this.#disposed = true
    for (const item of this.#items.splice(0).reverse()) item.dispose()
  }
}

/** Collects calls for `milliseconds`, then makes one. */
export function debounce(milliseconds: number, act: () => void): (() => void) & vscode.Disposable {
  let timer: NodeJS.Timeout | undefined
  const call = (): void => {
    clearTimeout(timer)
    timer = setTimeout(act, milliseconds)
  }
  return Object.assign(call, { dispose: () => clearTimeout(timer) })
}
