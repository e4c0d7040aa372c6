import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { couldBeModel, fetchModel, type HubModel } from '../hub/modelFiles.ts'
import type { HubOptions } from '../hub/snapshot.ts'
import { readModelFolder } from '../io/modelFolder.ts'
import { openPeftAdapter } from '../io/peftAdapter.ts'
import { resolveName } from '../model/names/resolveName.ts'
import { projectRoot } from '../projectRoot.ts'
import { looksLikePath } from '../recipe/recipePaths.ts'

/** Where a named model's files are: its folder, and the adapter to begin with when an adapter was named. */
export interface ResolvedModel {
  readonly folder: string
  readonly adapter: string | undefined
  /** The repository that was named, when it is one of the Hub. */
  readonly hub?: Pick<HubModel, 'id' | 'commit'>
}

export interface ResolveOptions extends HubOptions {
  /** Branch, tag or commit of a model of the Hub. */
  readonly revision?: string | null
  /** The repository of exactly this name, although another one has the same model without a licence to accept. */
  readonly exactName?: boolean
}

/** Names of models that come with the program. */
export const bundledModels: Readonly<Record<string, string>> = { stories260k: 'engine/starter/model' }

const bundled = (name: string): string | undefined =>
  Object.hasOwn(bundledModels, name) ? join(projectRoot(), bundledModels[name]!) : undefined

/**
 * A model by folder, by bundled name, by its name on the Hub, or by an adapter of any of these kinds, which stands for its base
 * model with that adapter on it. The base is looked for where the adapter says, beside the adapter, among the bundled models, and
 * on the Hub.
 */
export async function resolveModel(name: string, options: ResolveOptions = {}): Promise<ResolvedModel> {
  const local = existsSync(name) ? name : bundled(name)
  const hub = local === undefined ? await fromHub(name, options) : undefined
  const folder = local ?? hub!.folder
  const found = hub === undefined ? {} : { hub: { id: hub.id, commit: hub.commit } }
  const { kind } = await readModelFolder(folder)
  if (kind !== 'adapter') return { folder, adapter: undefined, ...found }
  return { folder: await baseOf(folder, options), adapter: folder, ...found }
}

async function fromHub(name: string, { revision = null, exactName = false, ...options }: ResolveOptions): Promise<HubModel> {
  if (looksLikePath(name) || !couldBeModel(name))
    throw new UnslothError('FILE_NOT_FOUND', `There is no model at ${name}.`, {
      hint: looksLikePath(name)
        ? 'Check the path.'
        : `Give a folder with config.json and safetensors files, a name on the Hub such as Qwen/Qwen2.5-0.5B, or ${Object.keys(bundledModels).join(', ')}.`,
    })
  // A revision belongs to the repository that is named.
  const known = exactName || revision !== null || name.includes('@') ? name : resolveName(name, { loadIn16bit: true }).name
  if (known.toLowerCase() !== name.toLowerCase()) {
    // What is on the disk already is not fetched a second time from another place.
    const cached = await fetchModel(name, revision, { ...options, cacheOnly: true }).catch(() => undefined)
    if (cached !== undefined) return cached
    options.onNotice?.(
      `${name} is loaded from ${known}, the same model in 16 bits. model.use_exact_model_name: true takes ${name} itself.`,
    )
  }
  return fetchModel(known, revision, options)
}

async function baseOf(adapter: string, options: ResolveOptions): Promise<string> {
  const { config } = await openPeftAdapter(adapter)
  const base = config.baseModel
  const places =
    base === null
      ? []
      : [base, join(adapter, base), join(adapter, '..', base), ...[bundled(base)].filter((place) => place !== undefined)]
  const found = places.find((place) => existsSync(join(place, 'config.json')))
  if (found !== undefined) return found
  if (base === null || looksLikePath(base) || !couldBeModel(base))
    throw new UnslothError('FILE_NOT_FOUND', `${adapter}: the adapter's base model ${base ?? '(not named)'} was not found.`, {
      hint: 'Name the base model, and the adapter as lora.init_adapter or --adapter.',
    })
  return (await fromHub(base, { ...options, revision: config.revision })).folder
}
