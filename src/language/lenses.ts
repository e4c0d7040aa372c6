import type { CodeLens } from 'vscode-languageserver'
import type { Recipe } from '#shared/recipe.ts'
import { formatBytes, formatCount } from '#shared/units.ts'
import { lensCommands } from './commands.ts'
import { runLength, timeTitle } from './hints.ts'
import { t } from './texts.ts'
import { lengthsOf, type RecipePlan, type Workspace } from './workspace.ts'

/** The memory figure: what the run needs, of what the device has, in the unit of the device where that says enough. */
export function memoryTitle({ totalBytes, freeBytes, deviceBytes }: RecipePlan): string {
  if (deviceBytes === undefined) return formatBytes(totalBytes)
  const over = freeBytes !== undefined && totalBytes > 0.9 * freeBytes ? '$(warning) ' : ''
  const device = formatBytes(deviceBytes).replace('.0 ', ' ')
  const [have = '1', unit = ''] = device.split(' ')
  const inUnit = (totalBytes / deviceBytes) * Number(have)
  return over + t('{0} of {1}', inUnit >= 0.095 ? inUnit.toFixed(1) : formatBytes(totalBytes), `${have} ${unit}`)
}

/** What can be done with a recipe, above its first line. `recipe` is null while it has errors. */
export async function codeLenses(uri: string, recipe: Recipe | null, workspace: Workspace): Promise<CodeLens[]> {
  const range = { start: { line: 0, character: 0 }, end: { line: 0, character: 0 } }
  const lens = (title: string, command: string, ...args: unknown[]): CodeLens => ({
    range,
    command: { title, command, arguments: [uri, ...args] },
  })
  const lenses = [
    lens(t('▶ Fine-tune'), lensCommands.fineTune),
    lens(t('Dry run'), lensCommands.dryRun),
    lens(t('Preview data'), lensCommands.previewData),
  ]
  if (recipe === null) return lenses
  const [tokens, checkpoints] = await Promise.all([workspace.tokens(recipe), workspace.checkpoints(recipe.training.output_dir)])
  const plan = await workspace.plan(recipe, lengthsOf(tokens))
  if (plan.ok) {
    const length = await runLength(recipe, workspace)
    const time = length === undefined ? undefined : timeTitle(length, plan.value)
    lenses.push(lens(memoryTitle(plan.value), lensCommands.showMemoryPlan, plan.value))
    if (time !== undefined) lenses.push(lens(time, lensCommands.showMemoryPlan, plan.value))
  }
  const newest = checkpoints
    .filter(({ resumable }) => resumable)
    .sort((a, b) => (a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : b.step - a.step))[0]
  if (newest !== undefined) {
    lenses.push(
      lens(t('Resume step {0}', formatCount(newest.step)), lensCommands.resumeRun, {
        run: newest.runDirectory,
        checkpoint: newest.path,
        step: newest.step,
      }),
    )
  }
  return lenses
}
