import { basename } from 'node:path'
import { formatBytes } from '#shared/units.ts'
import type { Recipe } from '#shared/recipe.ts'
import { printPlan } from '../../graph/plan.ts'
import { formatRecipe } from '../../recipe/formatRecipe.ts'
import { loadRecipe } from '../../recipe/loadRecipe.ts'
import { engineEntry } from '../../projectRoot.ts'
import { launchRun } from '../../run/detached.ts'
import { RunDirectory } from '../../run/runDirectory.ts'
import { prepareRun, type PreparedRun } from '../../train/prepareRun.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { progressView, shownPath } from '../progressView.ts'
import { executeRun } from '../runLauncher.ts'

/** Fine-tunes as a recipe says: in this process with a progress line, or in the background. */
export async function finetuneCommand({ recipe: source, flags }: CommandArgs<'finetune'>): Promise<number> {
  const { recipe, warnings } = loadRecipe({ ...source, cwd: process.cwd() })
  for (const warning of warnings) console.error(`warning: ${warning}`)
  if (flags.dry_run || flags.print_plan) return dryRun(recipe, flags)
  const run = RunDirectory.create(recipe.training.output_dir, runName(recipe), formatRecipe(recipe), {
    status: { model: recipe.model.name, dataset: datasetName(recipe), method: recipe.training.training_type },
  })
  if (flags.detach) {
    const { pid } = await launchRun(run.dir, { entry: engineEntry() })
    console.log(
      flags.json
        ? JSON.stringify({ dir: run.dir, pid })
        : `started ${shownPath(run.dir)} (process ${pid}); \`unsloth status ${shownPath(run.dir)}\` shows it`,
    )
    return 0
  }
  return foreground(run.dir, flags.json)
}

/** Runs in this process and shows it; the exit code tells whether it came to its end or was stopped in good order. */
export async function foreground(dir: string, json: boolean): Promise<number> {
  const view = json ? undefined : progressView(process.stdout)
  if (!json) console.log(`run ${shownPath(dir)}`)
  try {
    const ending = await executeRun(dir, view)
    if (json) console.log(JSON.stringify({ dir, ending, status: await RunDirectory.open(dir).reader().status() }, null, 2))
    return 0
  } finally {
    view?.end()
  }
}

const runName = (recipe: Recipe): string => recipe.training.run_name ?? basename(recipe.model.name)

const datasetName = (recipe: Recipe): string | null => recipe.data.dataset ?? recipe.data.local_dataset[0] ?? null

async function dryRun(recipe: Recipe, flags: { readonly json: boolean; readonly print_plan: boolean }): Promise<number> {
  const view = progressView(process.stderr)
  const prepared = await prepareRun(recipe, { onDownload: (progress) => view.onDownload?.(progress) })
  view.end()
  for (const warning of prepared.warnings) console.error(`warning: ${warning}`)
  if (flags.json) console.log(JSON.stringify(dryRunReport(recipe, prepared), null, 2))
  else {
    console.log(formatRecipe(recipe))
    for (const line of prepared.summaryLines) console.log(line)
    const { parts, totalBytes, hostBytes } = prepared.plan
    const row = (name: string, bytes: number) => console.log(`  ${name.padEnd(23)} ${formatBytes(bytes).padStart(10)}`)
    for (const { name, bytes, place } of parts) if (place === undefined) row(name, bytes)
    row('total', totalBytes)
    for (const { name, bytes, place } of parts) if (place === 'host') row(`${name} (host)`, bytes)
    if (hostBytes > 0) row('total (host)', hostBytes)
    if (flags.print_plan) console.log(printPlan(prepared.plan.training.plan))
  }
  return 0
}

const dryRunReport = (recipe: Recipe, prepared: PreparedRun) => ({
  recipe,
  patches: prepared.model.patchReport,
  totalSteps: prepared.totalSteps,
  plan: prepared.plan.summary,
  memory: { parts: prepared.plan.parts, totalBytes: prepared.plan.totalBytes },
  warnings: prepared.warnings,
})
