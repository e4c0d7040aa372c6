import { existsSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { readModelFolder } from '../io/modelFolder.ts'
import { openPeftAdapter } from '../io/peftAdapter.ts'
import { projectRoot } from '../projectRoot.ts'

/** Where a named model's files are: its folder, and the adapter to begin with when an adapter was named. */
export interface ResolvedModel {
  readonly folder: string
  readonly adapter: string | undefined
}

/** Names of models that come with the program. */
export const bundledModels: Readonly<Record<string, string>> = { stories260k: 'engine/starter/model' }

/**
 * A model by folder, by bundled name, or by an adapter's folder, which stands for its base model with that adapter on it. The base
 * is looked for where the adapter says, beside the adapter, and among the bundled models.
 */
export async function resolveModel(name: string): Promise<ResolvedModel> {
  const folder = existsSync(name) ? name : bundledModels[name] === undefined ? undefined : join(projectRoot(), bundledModels[name])
  if (folder === undefined)
    throw new UnslothError('FILE_NOT_FOUND', `There is no model at ${name}.`, {
      hint: isAbsolute(name) ? 'Check the path.' : `Give a folder with config.json and safetensors files, or ${Object.keys(bundledModels).join(', ')}. Models are not downloaded by name yet.`,
    })
  const { kind } = await readModelFolder(folder)
  if (kind !== 'adapter') return { folder, adapter: undefined }
  const { config } = await openPeftAdapter(folder)
  const base = config.baseModel
  const places = base === null ? [] : [base, join(folder, base), join(folder, '..', base), ...(bundledModels[base] === undefined ? [] : [join(projectRoot(), bundledModels[base])])]
  const found = places.find((place) => existsSync(join(place, 'config.json')))
  if (found === undefined)
    throw new UnslothError('FILE_NOT_FOUND', `${folder}: the adapter's base model ${base ?? '(not named)'} was not found.`, { hint: 'Name the base model, and the adapter as lora.init_adapter or --adapter.' })
  return { folder: found, adapter: folder }
}
