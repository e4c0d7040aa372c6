import { dirname, join } from 'node:path'
import type { Recipe } from '#shared/recipe.ts'
import { cleanPartials } from '../io/atomicFile.ts'
import type { PreparedRun } from './prepareRun.ts'

export interface OutputEvents {
  onOutput(kind: string, path: string): void
  log(message: string): void
}

/** Rows, and tokens of each, on which a merged model is compared with the trained one. */
const probeRows = 3
const probeTokens = 64

/**
 * Saves what the recipe asks for: an adapter, a merged model, or both; each folder appears complete or not at all. Below
 * `save.path` when it is given (a folder for each method when there are several), else in the run directory.
 */
export async function saveOutputs(prepared: PreparedRun, recipe: Recipe, runFolder: string, events: OutputEvents): Promise<void> {
  const { method, path, max_shard_size } = recipe.save
  const methods = method.filter((name) => name === 'lora' || name === 'merged_16bit' || name === 'merged_4bit')
  const names = { lora: 'adapter', merged_16bit: 'merged', merged_4bit: 'merged-4bit' } as const
  for (const name of methods) {
    const folder = path === null ? join(runFolder, names[name]) : methods.length === 1 ? path : join(path, names[name])
    await cleanPartials(dirname(folder))
    if (name === 'lora' && prepared.model.patched.training.kind === 'lora') await prepared.model.savePretrained(folder)
    else {
      const probes = prepared.samples.slice(0, probeRows).map(({ ids }) => ids.slice(0, probeTokens))
      const check = await prepared.model.savePretrainedMerged(
        folder,
        { maxShardSize: max_shard_size, probes },
        name === 'merged_4bit' ? 'merged_4bit' : 'merged_16bit',
      )
      events.log(
        `merged model compared with the trained one: relative difference of logits ${check.error.toExponential(1)}, allowed ${check.allowed.toExponential(0)}`,
      )
    }
    events.onOutput(names[name], folder)
  }
}
