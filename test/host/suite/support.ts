import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import * as vscode from 'vscode'
import type { ExtensionApi } from '../../../src/extension.ts'

export const extensionId = 'unsloth-vscode.unsloth-vscode'

/** The extension, activated. */
export async function activated(): Promise<ExtensionApi> {
  const extension = vscode.extensions.getExtension<ExtensionApi>(extensionId)
  if (extension === undefined) throw new Error(`${extensionId} is not there`)
  return extension.activate()
}

export const workspace = (): string => vscode.workspace.workspaceFolders![0]!.uri.fsPath
export const inWorkspace = (...names: string[]): string => join(workspace(), ...names)

/**
 * Waits until `check` gives something, and says what it waited for when it does not. Nothing that follows an event is read once:
 * the limit is for a machine with other work to do.
 */
export async function eventually<T>(
  what: string,
  check: () => T | undefined | false | Promise<T | undefined | false>,
  timeout = 120_000,
): Promise<T> {
  const end = Date.now() + timeout
  for (;;) {
    const value = await check()
    if (value !== undefined && value !== false) return value
    if (Date.now() > end) throw new Error(`waited ${timeout / 1000} s for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

export interface Told {
  readonly kind: 'information' | 'warning' | 'error'
  readonly text: string
  readonly actions: readonly string[]
  /** Presses a button of the notification, or closes it. */
  answer(action: string | undefined): void
}

/** Notifications, caught before they reach the screen. */
export function catchNotifications(): { readonly told: Told[]; restore(): void } {
  const told: Told[] = []
  const window = vscode.window as unknown as Record<string, unknown>
  const kinds = { showInformationMessage: 'information', showWarningMessage: 'warning', showErrorMessage: 'error' } as const
  const originals = Object.keys(kinds).map((name) => [name, window[name]] as const)
  for (const [name, kind] of Object.entries(kinds)) {
    window[name] = (text: string, ...rest: unknown[]) =>
      new Promise((answer) => told.push({ kind, text, actions: rest.filter((item) => typeof item === 'string'), answer }))
  }
  return {
    told,
    restore: () => {
      for (const [name, original] of originals) window[name] = original
    },
  }
}

/** Answers questions of the next commands in order: a label of a QuickPick (a part is enough), or the text of an input box. */
export function answerQuestions(answers: readonly string[]): { restore(): void; readonly left: string[] } {
  const left = [...answers]
  const window = vscode.window as unknown as Record<string, unknown>
  const { showQuickPick, showInputBox } = window
  window.showQuickPick = async (
    items: readonly vscode.QuickPickItem[] | Promise<readonly vscode.QuickPickItem[]>,
    options?: vscode.QuickPickOptions,
  ) => {
    const shown = await items
    const wanted = left.shift()
    const chosen = shown.filter(({ label }) => wanted?.split(' + ').some((part) => label.includes(part)))
    if (chosen.length === 0) throw new Error(`${wanted} is not among ${shown.map(({ label }) => label).join(', ')}`)
    return options?.canPickMany === true ? chosen : chosen[0]
  }
  window.showInputBox = (options?: vscode.InputBoxOptions) => {
    const wanted = left.shift()
    return Promise.resolve(wanted === '' ? options?.value : wanted)
  }
  return { left, restore: () => Object.assign(window, { showQuickPick, showInputBox }) }
}

export const textOf = (path: string): string => readFileSync(path, 'utf8')

/** Text of the document that a command opened last under this name. */
export const reportText = (name: string): string | undefined =>
  vscode.workspace.textDocuments.find(({ uri }) => uri.scheme === 'unsloth-report' && uri.path.includes(name))?.getText()

export async function openRecipe(name: string): Promise<vscode.TextDocument> {
  const document = await vscode.workspace.openTextDocument(inWorkspace(name))
  await vscode.window.showTextDocument(document)
  return document
}
