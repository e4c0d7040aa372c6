import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { couldBeDataset, fetchDataset } from '../../../engine/hub/datasetRepository.ts'
import { hubCacheFolder, hubSettings } from '../../../engine/hub/settings.ts'
import { looksLikePath } from '../../../engine/recipe/recipePaths.ts'

export interface CachedRepository {
  /** `owner/name` */
  readonly id: string
  /** Folder of the snapshot that `main` names, or of the only one. */
  readonly folder: string
}

async function snapshot(repository: string, revision: string): Promise<string | undefined> {
  const named = await readFile(join(repository, 'refs', revision), 'utf8').then(
    (text) => text.trim(),
    () => revision,
  )
  const folder = join(repository, 'snapshots', named)
  if (/^[\w.-]+$/.test(named) && existsSync(folder)) return folder
  if (revision !== 'main') return undefined
  const [first]: string[] = await readdir(join(repository, 'snapshots')).catch(() => [])
  return first === undefined ? undefined : join(repository, 'snapshots', first)
}

/** The folder of a cached repository, or undefined when it was not fetched. */
export async function cachedModel(id: string, revision: string | null, cache = hubCacheFolder()): Promise<string | undefined> {
  if (!/^[\w.-]+(?:\/[\w.-]+)?$/.test(id) || id.includes('..')) return undefined
  return snapshot(join(cache, `models--${id.replace('/', '--')}`), revision ?? 'main')
}

/** Models that were fetched from the Hub, with configuration and weights in place. */
export async function cachedModels(cache = hubCacheFolder()): Promise<CachedRepository[]> {
  const found: CachedRepository[] = []
  for (const name of (await readdir(cache).catch(() => [])).slice(0, 2000)) {
    const parts = /^models--(.+)$/.exec(name)?.[1]?.split('--')
    if (parts === undefined) continue
    const folder = await snapshot(join(cache, name), 'main')
    if (folder === undefined) continue
    const files: string[] = await readdir(folder).catch(() => [])
    if (!files.includes('config.json') || !files.some((file) => file.endsWith('.safetensors'))) continue
    found.push({ id: parts.length === 1 ? parts[0]! : `${parts[0]}/${parts.slice(1).join('--')}`, folder })
  }
  return found
}

/** The first file of the training split of a data set that the Hub's cache has; nothing is fetched. */
export async function cachedDatasetFile(name: string, cache: string): Promise<string | undefined> {
  if (looksLikePath(name) || !couldBeDataset(name)) return undefined
  const settings = { ...hubSettings({}), cache, offline: true, token: undefined }
  const found = await fetchDataset(name, { subset: null, splits: ['train'] }, { settings, cacheOnly: true }).catch(
    () => undefined,
  )
  return found?.splits.get('train')?.[0]
}
