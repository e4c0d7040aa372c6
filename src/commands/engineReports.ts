import { readFile } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import * as vscode from 'vscode'
import { UnslothError } from '#shared/errors.ts'
import { engineRequests, type DoctorResult, type RequestDescriptor } from '#shared/protocol.ts'
import type { Services } from '../services.ts'
import { pathOf } from '../trees/nodes.ts'
import { cancelled, choose, pickModel, pickRecipe } from './pick.ts'
import { doctorReport, inspectReport, memoryReport, planReport, verifyReport } from './reports.ts'
import type { RecipePlan } from '../language/workspace.ts'

/** Asks the engine with a progress that can be cancelled. */
export function ask<P, R>({ engine }: Services, title: string, descriptor: RequestDescriptor<P, R>, params: P): Promise<R> {
  return Promise.resolve(
    vscode.window.withProgress({ location: vscode.ProgressLocation.Notification, title, cancellable: true }, (_, token) => {
      const controller = new AbortController()
      token.onCancellationRequested(() => controller.abort())
      return engine.request(descriptor, params, { signal: controller.signal })
    }),
  )
}

/** What a recipe would do and the memory it would take, without training. */
export async function dryRun(services: Services, argument: unknown): Promise<void> {
  const path = await pickRecipe(argument, vscode.l10n.t('Dry Run'))
  if (path === undefined)
    throw new UnslothError('USAGE', vscode.l10n.t('There is no recipe in this workspace.'), {
      hint: 'Write one with "Unsloth: New Recipe…".',
    })
  const result = await ask(services, vscode.l10n.t('Planning'), engineRequests.plan, {
    recipe: await readFile(path, 'utf8'),
    path,
  })
  await services.reports.show(`Plan of ${basename(path)}.md`, planReport(basename(path), result))
}

/** Where a recipe's memory goes. The lens brings its plan; otherwise the engine makes one. */
export async function showMemoryPlan(services: Services, argument: unknown, plan: unknown): Promise<void> {
  const path = pathOf(argument)
  if (path === undefined || !isPlan(plan)) return dryRun(services, argument)
  await services.reports.show(`Memory of ${basename(path)}.md`, memoryReport(basename(path), plan))
}

const isPlan = (value: unknown): value is RecipePlan =>
  typeof value === 'object' && value !== null && 'totalBytes' in value && 'parts' in value && Array.isArray(value.parts)

/** Architecture, tensors and sizes of a model, adapter or safetensors file. */
export async function inspectModel(services: Services, argument: unknown): Promise<void> {
  const { path } = await pickModel(services, argument, vscode.l10n.t('Inspect Model'))
  const result = await ask(services, vscode.l10n.t('Inspecting'), engineRequests.inspect, { path, limit: 5000 })
  await services.reports.show(`${basename(path)}.md`, inspectReport(result))
}

/** Compares the engine with reference results in a folder. */
export async function verify(services: Services, argument: unknown): Promise<void> {
  const path = pathOf(argument) ?? (await pickGolden())
  const result = await ask(services, vscode.l10n.t('Verifying'), engineRequests.verify, { path })
  await services.reports.show(`Verification of ${basename(path)}.md`, verifyReport(path, result))
}

async function pickGolden(): Promise<string> {
  const title = vscode.l10n.t('Verify')
  const found = await vscode.workspace.findFiles('**/golden.safetensors', '**/node_modules/**', 200)
  const items = found.map(({ fsPath }) => ({ label: vscode.workspace.asRelativePath(dirname(fsPath)), path: dirname(fsPath) }))
  const browse = { label: vscode.l10n.t('Browse…'), path: undefined }
  const { path } = await choose([...items, browse], {
    title,
    placeHolder: vscode.l10n.t('Folder with a model and golden.safetensors'),
  })
  if (path !== undefined) return path
  const [folder] = (await vscode.window.showOpenDialog({ title, canSelectFolders: true, canSelectFiles: false })) ?? []
  if (folder === undefined) throw cancelled()
  return folder.fsPath
}

/** What this machine can do, and why not more. Also says what keeps the engine from starting. */
export async function doctor(services: Services): Promise<void> {
  const { version } = services.extension.extension.packageJSON as { version: string }
  const editor = [
    [vscode.env.appName, vscode.version],
    [vscode.l10n.t('Extension'), version],
    [vscode.l10n.t('Runtime'), `${process.execPath} (Node ${process.versions.node})`],
    [vscode.l10n.t('Remote'), vscode.env.remoteName ?? vscode.l10n.t('no')],
  ] as const
  let result: DoctorResult
  try {
    result = await ask(services, vscode.l10n.t('Looking at this machine'), engineRequests.doctor, {})
  } catch (error) {
    if (!UnslothError.is(error, 'NATIVE')) throw error
    result = {
      checks: [
        {
          name: vscode.l10n.t('Engine'),
          level: 'error',
          detail: error.message,
          ...(error.hint === undefined ? {} : { hint: error.hint }),
        },
      ],
    }
  }
  await services.reports.show('Doctor.md', doctorReport(result, editor))
}
