import { basename } from 'node:path'
import type { Recipe } from '#shared/recipe.ts'
import { launchRun, type LaunchedRun } from '../../engine/run/detached.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import type { EngineLocation } from './location.ts'

/** What the settings say where the recipe leaves the choice. */
export interface RunDefaults {
  readonly device: 'auto' | 'cpu' | 'cuda' | `cuda:${number}`
  readonly threads: number
}

export interface StartedRun extends LaunchedRun {
  /** Remarks about the recipe, one line each. */
  readonly warnings: readonly string[]
}

/**
 * Freezes a recipe into a new run directory and starts the process that works on it. The process belongs to nobody: it goes on
 * when the editor closes. Throws what is wrong with the recipe, or what the process said when it ended at once; then no
 * directory is left behind that never was a run. `secrets` go into the environment of the process only.
 */
export async function startRun(
  file: string,
  defaults: RunDefaults,
  location: EngineLocation,
  secrets: Readonly<Record<string, string>>,
): Promise<StartedRun> {
  const [{ loadRecipe }, { formatRecipe }] = await Promise.all([
    import('../../engine/recipe/loadRecipe.ts'),
    import('../../engine/recipe/formatRecipe.ts'),
  ])
  const { recipe: written, warnings } = loadRecipe({ file, overrides: [], cwd: '/' })
  const recipe = withDefaults(written, defaults)
  const run = RunDirectory.create(
    recipe.training.output_dir,
    recipe.training.run_name ?? basename(recipe.model.name),
    formatRecipe(recipe),
    {
      status: {
        model: recipe.model.name,
        dataset: recipe.data.dataset ?? recipe.data.local_dataset[0] ?? null,
        method: recipe.training.training_type,
      },
    },
  )
  return { ...(await launch(run.dir, location, secrets)), warnings }
}

/** Starts a process on an existing run, which goes on from its newest checkpoint. */
export function launch(
  dir: string,
  { execPath, entry, env }: EngineLocation,
  secrets: Readonly<Record<string, string>>,
): Promise<LaunchedRun> {
  return launchRun(dir, { execPath, entry, env: { ...process.env, ...env, ...secrets } })
}

function withDefaults(recipe: Recipe, { device, threads }: RunDefaults): Recipe {
  const { training } = recipe
  return {
    ...recipe,
    training: {
      ...training,
      device: training.device === 'auto' ? device : training.device,
      threads: training.threads === 0 ? threads : training.threads,
    },
  }
}
