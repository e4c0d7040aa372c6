import { join } from 'node:path'
import * as vscode from 'vscode'
import { runFiles } from '../../engine/run/runFiles.ts'
import { readSetting, registerCommand } from '../editor.ts'
import type { CommandId, CommandSignatures } from '../contributions.ts'
import { walkthrough } from '../contributions.ts'
import type { Services } from '../services.ts'
import { pickRun } from './pick.ts'
import { requirePath } from './newRecipe.ts'

type Handlers = {
  readonly [K in CommandId]: (services: Services, ...args: Parameters<CommandSignatures[K]>) => ReturnType<CommandSignatures[K]>
}

/** Every command in one table. What they need is loaded when the first of its kind is called. */
const handlers: Handlers = {
  'unsloth.fineTune': async (services, recipe) => (await import('./fineTune.ts')).fineTune(services, recipe),
  'unsloth.newRecipe': async (services, start) => (await import('./newRecipe.ts')).newRecipe(services, start),
  'unsloth.openStarter': async (services) => (await import('./newRecipe.ts')).openStarter(services),
  'unsloth.dryRun': async (services, recipe) => (await import('./engineReports.ts')).dryRun(services, recipe),
  'unsloth.previewData': async (services, data) => (await import('./previewData.ts')).previewData(services, data),
  'unsloth.showMemoryPlan': async (services, recipe, plan) =>
    (await import('./engineReports.ts')).showMemoryPlan(services, recipe, plan),
  'unsloth.inspectModel': async (services, model) => (await import('./engineReports.ts')).inspectModel(services, model),
  'unsloth.verify': async (services, folder) => (await import('./engineReports.ts')).verify(services, folder),
  'unsloth.doctor': async (services) => (await import('./engineReports.ts')).doctor(services),
  'unsloth.selectDevice': async (services) => (await import('./selectDevice.ts')).selectDevice(services),
  'unsloth.measureSpeed': async (services) => (await import('./measureSpeed.ts')).measureSpeed(services),
  'unsloth.migrateRecipe': async (services, file) => (await import('./migrateRecipe.ts')).migrateRecipe(services, file),
  'unsloth.setHubToken': async (services) => (await import('./hubToken.ts')).setHubToken(services),
  'unsloth.generate': async (services, source, prompt) => (await import('./generate.ts')).generate(services, source, prompt),
  'unsloth.merge': async (services, source) => (await import('./merge.ts')).merge(services, source),
  'unsloth.resumeRun': async (services, run, at) => (await import('./fineTune.ts')).resumeRun(services, runNamedBy(at) ?? run),
  'unsloth.stopRun': async (services, run, how) => (await import('./controlRun.ts')).stopRun(services, run, how),
  'unsloth.pauseRun': async (services, run) => (await import('./controlRun.ts')).pauseRun(services, run),
  'unsloth.continueRun': async (services, run) => (await import('./controlRun.ts')).continueRun(services, run),
  'unsloth.compareRuns': async (services, run, selected) =>
    (await import('./controlRun.ts')).compareRuns(services, run, selected),
  'unsloth.deleteRun': async (services, run) => (await import('./controlRun.ts')).deleteRun(services, run),
  'unsloth.openTrainingPanel': async (services, run) => {
    services.panels.open((await anyRun(services, run, vscode.l10n.t('Open Training Panel'))).dir)
  },
  'unsloth.openRunRecipe': async (services, run) =>
    openFile(await anyRun(services, run, vscode.l10n.t('Open Recipe of Run')), runFiles.recipe),
  'unsloth.openRunLog': async (services, run) =>
    openFile(await anyRun(services, run, vscode.l10n.t('Open Log of Run')), runFiles.log),
  'unsloth.revealRun': async (services, run) => {
    const { dir } = await anyRun(services, run, vscode.l10n.t('Reveal Run'))
    const inside = vscode.workspace.getWorkspaceFolder(vscode.Uri.file(dir)) !== undefined
    await vscode.commands.executeCommand(
      inside ? 'revealInExplorer' : 'revealFileInOS',
      vscode.Uri.file(join(dir, runFiles.status)),
    )
  },
  'unsloth.showEngineLog': ({ log }) => Promise.resolve(log.show()),
  'unsloth.restartEngine': ({ engine }) => engine.restart(),
  'unsloth.openWalkthrough': async ({ extension }) => {
    await vscode.commands.executeCommand('workbench.action.openWalkthrough', `${extension.extension.id}#${walkthrough}`, false)
  },
  'unsloth.refresh': async ({ runs, library }) => {
    library.invalidate()
    await runs.refresh()
  },
  'unsloth.addDataset': async (services) => {
    const [{ pickWorkspaceFolder }, { addDatasets }] = await Promise.all([import('./pick.ts'), import('./newRecipe.ts')])
    const title = vscode.l10n.t('Add Data Set')
    const folder = await pickWorkspaceFolder(title)
    const files = await vscode.window.showOpenDialog({
      title,
      canSelectMany: true,
      filters: { [vscode.l10n.t('Data sets')]: ['jsonl', 'json', 'ndjson', 'csv', 'tsv', 'parquet', 'gz'] },
    })
    if (files === undefined) throw new vscode.CancellationError()
    await addDatasets(files, folder)
    services.library.invalidate()
  },
  'unsloth.addModelFolder': async (services) => {
    const [folder] =
      (await vscode.window.showOpenDialog({
        title: vscode.l10n.t('Add Model Folder'),
        canSelectFolders: true,
        canSelectFiles: false,
      })) ?? []
    if (folder === undefined) throw new vscode.CancellationError()
    const { writeSetting } = await import('../editor.ts')
    await writeSetting('unsloth.modelFolders', [...new Set([...readSetting('unsloth.modelFolders'), folder.fsPath])])
    services.library.invalidate()
  },
  'unsloth.openDataset': async (services, dataset) =>
    (await import('./previewData.ts')).openDataset(services, requirePath(dataset)),
  'unsloth.copyPath': (_, node) => Promise.resolve(vscode.env.clipboard.writeText(requirePath(node))),
}

/** The run of a recipe's lens. */
const runNamedBy = (at: unknown): string | undefined =>
  typeof at === 'object' && at !== null && 'run' in at && typeof at.run === 'string' && !('kind' in at) ? at.run : undefined

const anyRun = (services: Services, run: unknown, title: string) =>
  pickRun(services, run, { title, accepts: () => true, none: vscode.l10n.t('There is no run in this workspace yet.') })

async function openFile({ dir }: { readonly dir: string }, name: string): Promise<void> {
  await vscode.window.showTextDocument(vscode.Uri.file(join(dir, name)), { preview: true })
}

/** Registers all commands. What one throws becomes one notification; a closed question is silent. */
export function registerCommands(services: Services): vscode.Disposable[] {
  const register = <K extends CommandId>(id: K): vscode.Disposable => {
    const handler = handlers[id] as (services: Services, ...args: unknown[]) => Promise<unknown>
    const run = async (...args: unknown[]): Promise<unknown> => {
      try {
        return await handler(services, ...args)
      } catch (error) {
        services.problems.show(error)
        return undefined
      }
    }
    return registerCommand(id, run as CommandSignatures[K])
  }
  return (Object.keys(handlers) as CommandId[]).map(register)
}
