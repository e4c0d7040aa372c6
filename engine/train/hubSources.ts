import { existsSync } from 'node:fs'
import { join } from 'node:path'
import * as z from 'zod'
import { UnslothError } from '#shared/errors.ts'
import type { Recipe } from '#shared/recipe.ts'
import { couldBeDataset, fetchDataset } from '../hub/datasetRepository.ts'
import type { HubOptions } from '../hub/snapshot.ts'
import { looksLikePath } from '../recipe/recipePaths.ts'
import { nodeFs, readJson, writeFileAtomic } from '../run/files.ts'

const pinSchema = z.object({ id: z.string(), commit: z.string().regex(/^[0-9a-f]{40}$/) })
const sourcesSchema = z.object({ model: pinSchema.optional(), dataset: pinSchema.optional() })

/** Repositories of the Hub that a run uses, at the commits that it began with. */
export interface HubSources {
  readonly model?: { readonly id: string; readonly commit: string } | undefined
  readonly dataset?: { readonly id: string; readonly commit: string } | undefined
}

const sourcesPath = (runFolder: string): string => join(runFolder, 'hub.json')

/** What the run began with, so that it goes on with the same model and data when the Hub has newer ones; nothing before its start. */
export function readSources(runFolder: string): HubSources {
  return sourcesSchema.safeParse(readJson(sourcesPath(runFolder))).data ?? {}
}

/** Keeps what the run began with. */
export function writeSources(runFolder: string, sources: HubSources): void {
  if (sources.model !== undefined || sources.dataset !== undefined)
    writeFileAtomic(sourcesPath(runFolder), `${JSON.stringify(sources, null, 2)}\n`, { disk: nodeFs })
}

/** A data section whose data are files of this machine. */
export interface LocalData {
  readonly data: Recipe['data']
  readonly source: HubSources['dataset']
  /** Paths of each source, when the recipe mixes several. */
  readonly groups: readonly (readonly string[])[] | undefined
}

/** Whether `data.dataset` is meant as the name of a repository. */
export const isHubDataset = (name: string): boolean => !looksLikePath(name) && !existsSync(name) && couldBeDataset(name)

function partsOf(split: string, key: string): { readonly name: string; readonly slice: string } {
  const [, name, slice] = /^\s*([\w.-]+)\s*(\[.*\])?\s*$/.exec(split) ?? []
  if (name === undefined)
    throw new UnslothError('DATA', `${key}: ${JSON.stringify(split)} is no split.`, {
      hint: 'Give a name such as train, or a slice of one such as train[:10%].',
    })
  return { name, slice: slice ?? '' }
}

/** The data section with the files of a data set of the Hub in place of its name; any other as it is. */
export async function localData({ data }: Recipe, pinned: HubSources['dataset'], options: HubOptions): Promise<LocalData> {
  const name = data.dataset
  if (name === null || !isHubDataset(name)) return { data, source: undefined, groups: undefined }
  const train = partsOf(data.split, 'data.split')
  const held = typeof data.eval_split === 'string' ? partsOf(data.eval_split, 'data.eval_split') : undefined
  const choice = { subset: data.subset, splits: [train.name, ...(held === undefined ? [] : [held.name])] }
  const found = await fetchDataset(pinned === undefined ? name : `${pinned.id}@${pinned.commit}`, choice, options)
  const files = (split: string): string[] => [...found.splits.get(split)!]
  // Files alone are the split train, whatever they were on the Hub.
  const evaluation =
    held === undefined ? {} : { eval_dataset: files(held.name), eval_split: held.slice === '' ? null : `train${held.slice}` }
  return {
    data: {
      ...data,
      dataset: null,
      subset: null,
      local_dataset: [...files(train.name), ...data.local_dataset],
      split: `train${train.slice}`,
      ...evaluation,
    },
    source: { id: found.id, commit: found.commit },
    groups: data.mix_weights.length === 0 ? undefined : [files(train.name), ...data.local_dataset.map((path) => [path])],
  }
}
