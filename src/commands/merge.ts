import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import * as vscode from 'vscode'
import { errorCodes, UnslothError } from '#shared/errors.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { latestCheckpoint } from '../../engine/run/checkpoints.ts'
import type { Services } from '../services.ts'
import { pathOf } from '../trees/nodes.ts'
import { cancelled, choose, pickModel, runChoice } from './pick.ts'

/** The adapter of a run: its result, else its newest checkpoint. */
export function adapterOf(run: string): string | undefined {
  const result = join(run, 'adapter')
  return existsSync(join(result, 'adapter_config.json')) ? result : latestCheckpoint(run)?.path
}

/** An adapter: of the run, output, checkpoint or folder that the argument names, else one that the user picks. */
export async function pickAdapter(services: Services, argument: unknown, title: string): Promise<string> {
  const named = pathOf(argument)
  if (named !== undefined) {
    const adapter = RunDirectory.isRun(named) ? adapterOf(named) : named
    if (adapter === undefined || !existsSync(join(adapter, 'adapter_config.json'))) {
      throw new UnslothError('RUN_INVALID', `${named} has no adapter.`, {
        hint: 'Choose a LoRA run that has finished or saved a checkpoint, or an adapter folder.',
      })
    }
    return adapter
  }
  const runs = services.runs.views
    .filter(({ dir }) => adapterOf(dir) !== undefined)
    .map((view) => ({ ...runChoice(view), path: adapterOf(view.dir) }))
  if (runs.length === 0) return (await pickModel(services, undefined, title, ['adapter'])).path
  const other = { label: vscode.l10n.t('Another adapter…'), path: undefined, iconPath: new vscode.ThemeIcon('plug') }
  const { path } = await choose([...runs, other], { title, placeHolder: vscode.l10n.t('Which run?') })
  return path ?? (await pickModel(services, undefined, title, ['adapter'])).path
}

/** The last line of `unsloth merge --json`. */
type MergeAnswer =
  { readonly folder: string } | { readonly error: { readonly code: string; readonly message: string; readonly hint?: string } }

/** Writes base and adapter as one plain model, compared with the trained one before it appears. Resolves to its folder. */
export async function merge(services: Services, argument: unknown): Promise<string> {
  const title = vscode.l10n.t('Merge')
  const adapter = await pickAdapter(services, argument, title)
  const folder = await askFolder(adapter, title)
  const { execPath, env, entry } = services.locate()
  const secrets = await services.hubToken.environment()
  const answer = await vscode.window.withProgress(
    {
      location: vscode.ProgressLocation.Notification,
      title: vscode.l10n.t('Merging {0}', basename(dirname(adapter))),
      cancellable: true,
    },
    (_, token) => runMerge(execPath, [entry, 'merge', adapter, folder, '--json'], { ...env, ...secrets }, token, services.log),
  )
  if ('error' in answer) {
    const { code, message, hint } = answer.error
    throw new UnslothError(errorCodes.find((known) => known === code) ?? 'INTERNAL', message, hint === undefined ? {} : { hint })
  }
  services.library.invalidate()
  void tell(answer.folder)
  return answer.folder
}

async function tell(folder: string): Promise<void> {
  const reveal = vscode.l10n.t('Reveal')
  const inspect = vscode.l10n.t('Inspect')
  const chosen = await vscode.window.showInformationMessage(
    vscode.l10n.t('Merged model saved in {0}.', vscode.workspace.asRelativePath(folder)),
    inspect,
    reveal,
  )
  if (chosen === inspect) await vscode.commands.executeCommand('unsloth.inspectModel', folder)
  if (chosen === reveal) await vscode.commands.executeCommand('revealInExplorer', vscode.Uri.file(folder))
}

/** A folder that is not there yet: beside the adapter unless the user says another. */
async function askFolder(adapter: string, title: string): Promise<string> {
  let proposal = join(dirname(adapter), 'merged')
  for (let count = 2; existsSync(proposal); count++) proposal = join(dirname(adapter), `merged-${count}`)
  const value = await vscode.window.showInputBox({
    title,
    value: proposal,
    valueSelection: [proposal.length, proposal.length],
    prompt: vscode.l10n.t('New folder for the merged model'),
    ignoreFocusOut: true,
    validateInput: (path) =>
      path.trim() === ''
        ? vscode.l10n.t('Name a folder.')
        : existsSync(path)
          ? vscode.l10n.t('This exists already; a merged model is written into a new folder.')
          : undefined,
  })
  if (value === undefined) throw cancelled()
  return value
}

async function runMerge(
  execPath: string,
  args: string[],
  env: Readonly<Record<string, string>>,
  token: vscode.CancellationToken,
  log: vscode.LogOutputChannel,
): Promise<MergeAnswer> {
  const child = spawn(execPath, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'], windowsHide: true })
  const subscription = token.onCancellationRequested(() => child.kill())
  const ended = new Promise<void>((resolve, reject) => {
    child.once('error', (error) =>
      reject(new UnslothError('NATIVE', `The merge could not be started: ${error.message}`, { cause: error })),
    )
    child.once('close', () => resolve())
  })
  try {
    const [output, errors] = await Promise.all([text(child.stdout), text(child.stderr), ended])
    if (errors !== '') log.info(errors.trimEnd())
    if (token.isCancellationRequested) throw cancelled()
    const last = output.trimEnd().split('\n').at(-1) ?? ''
    try {
      return JSON.parse(last) as MergeAnswer
    } catch (cause) {
      throw new UnslothError('NATIVE', `The merge ended unexpectedly: ${errors.trim().split('\n').at(-1) ?? ''}`, {
        hint: 'The log tells more.',
        cause,
      })
    }
  } finally {
    subscription.dispose()
  }
}
