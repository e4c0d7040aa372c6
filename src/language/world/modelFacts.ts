import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { homedir } from 'node:os'
import { describeError } from '#shared/errors.ts'
import { weightTable, parameterCount } from '../../../engine/model/weightTable.ts'
import { archSpec } from '../../../engine/model/registry.ts'
import { readModelFolder } from '../../../engine/io/modelFolder.ts'
import { bundledModels, resolveModel } from '../../../engine/runtime/resolveModel.ts'
import type { ModelFacts, Outcome } from '../workspace.ts'
import { hubCacheFolder } from '../../../engine/hub/settings.ts'
import { cachedModel } from './hubCache.ts'
import { looksLikePath } from '../../../engine/recipe/recipePaths.ts'

/** A path of a recipe made absolute. */
export const absolutePath = (name: string, base: string): string =>
  resolve(base, name === '~' || name.startsWith('~/') ? join(homedir(), name.slice(1)) : name)

/** The folder of the model that a recipe names: a folder, a bundled model, or a model in the Hub cache. */
export async function modelFolder(
  name: string,
  base: string,
  revision: string | null = null,
  cache = hubCacheFolder(),
): Promise<Outcome<string>> {
  const path = absolutePath(name, base)
  const local = existsSync(path) ? path : bundledModels[name] === undefined ? undefined : name
  try {
    if (local !== undefined) return { ok: true, value: (await resolveModel(local)).folder }
    if (looksLikePath(name)) return { ok: false, missing: true, problem: `there is no model folder ${name}` }
    const cached = await cachedModel(name, revision, cache)
    if (cached !== undefined) return { ok: true, value: cached }
    return { ok: false, missing: true, problem: `${name} is neither a folder here nor a model in the Hub cache of this machine` }
  } catch (error) {
    return { ok: false, missing: false, problem: describeError(error).split('\n')[0]! }
  }
}

/** What config.json of a folder says, in the words of the engine. Weights are not read. */
export async function modelFacts(folder: string, bytes: number): Promise<ModelFacts> {
  const { config } = await readModelFolder(folder, 'model')
  const spec = archSpec(config!.values, config!.where)
  const entries = weightTable(spec)
  const modules = entries
    .filter(({ kind }) => kind === 'linear')
    .flatMap(({ pieces }) => pieces.map(({ name }) => name.replace(/\.weight$/, '')))
  return {
    folder,
    bytes,
    architecture: spec.architecture,
    layers: spec.layers,
    hidden: spec.hidden,
    context: spec.context,
    vocabulary: spec.vocabulary,
    parameters: parameterCount(entries),
    targetModules: [...new Set(modules.map((module) => module.slice(module.lastIndexOf('.') + 1)))],
    modulePaths: new Set(modules),
  }
}
