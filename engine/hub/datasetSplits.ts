import { UnslothError } from '#shared/errors.ts'
import { quote } from '../io/printable.ts'
import type { CardConfig } from './datasetCard.ts'
import { matchesGlob } from './globPattern.ts'

/** Paths of each split, in the order in which they are read. */
export type SplitFiles = ReadonlyMap<string, readonly string[]>

/** Kinds of data files that can be read, by the ends of their names; of a mixture the most frequent is taken, text last. */
const kinds: readonly (readonly [name: string, end: RegExp])[] = [
  ['JSON', /\.(?:jsonl|ndjson|json)(?:\.gz)?$/i],
  ['Parquet', /\.(?:parquet|pq)$/i],
  ['CSV', /\.(?:csv|tsv)(?:\.gz)?$/i],
  ['text', /\.(?:txt|text)(?:\.gz)?$/i],
]
const notData = /(?:^|\/)(?:dataset_infos?|dataset_dict|state|config|metadata|requirements|license|licence|notice)\.[a-z]+$/i
const isHidden = (path: string): boolean => path.split('/').some((part) => part.startsWith('.') || part.startsWith('__'))

/** The paths that hold data of one kind that can be read. */
export function dataPaths(paths: readonly string[]): string[] {
  const visible = paths.filter((path) => !isHidden(path) && !notData.test(path))
  const [first, ...others] = kinds.map(([, end]) => visible.filter((path) => end.test(path)))
  const text = others.pop()!
  const most = others.reduce((best, found) => (found.length > best.length ? found : best), first!)
  return (most.length > 0 ? most : text).sort()
}

const usual: readonly (readonly [split: string, words: string])[] = [
  ['train', 'train|training'],
  ['validation', 'validation|valid|dev|val'],
  ['test', 'test|testing|eval|evaluation'],
]
const word = (words: string): RegExp => new RegExp(`(?:^|[-._ 0-9])(?:${words})(?:$|[-._ 0-9])`, 'i')

function group(paths: readonly string[], splitOf: (path: string) => string | undefined): SplitFiles | undefined {
  const found = new Map<string, string[]>()
  for (const path of paths) {
    const split = splitOf(path)
    if (split !== undefined) found.set(split, [...(found.get(split) ?? []), path])
  }
  return found.size === 0 ? undefined : found
}

const usualSplit = (parts: readonly string[]): string | undefined =>
  usual.find(([, words]) => parts.some((part) => word(words).test(part)))?.[0]

/**
 * Splits by convention, in the order in which `datasets` tries: `data/<split>-00000-of-00002.*`, folders named train, test and their
 * like, files named so; else all files are `train`.
 */
export function conventionalSplits(paths: readonly string[]): SplitFiles {
  const sharded = group(paths, (path) => /(?:^|\/)data\/([^/]+)-\d{5}-of-\d{5}[^/]*$/.exec(path)?.[1])
  if (sharded !== undefined) return sharded
  const folders = group(paths, (path) => usualSplit(path.split('/').slice(0, -1)))
  if (folders !== undefined) return folders
  return group(paths, (path) => usualSplit([path.slice(path.lastIndexOf('/') + 1)])) ?? new Map([['train', paths]])
}

/** The shards that a name such as `train-00000-of-00003.parquet` promises and that are not among the paths. */
export function missingShards(paths: readonly string[]): string[] {
  const all = new Set(paths)
  const promised = paths.flatMap((path) => {
    const match = /^(.*-)\d{5}(-of-(\d{5}).*)$/.exec(path)
    if (match === null || path.includes('-of-00000')) return []
    return Array.from(
      { length: Math.min(Number(match[3]), 20_000) },
      (_, index) => `${match[1]}${String(index).padStart(5, '0')}${match[2]}`,
    )
  })
  // Names with a hash of their own after the count cannot be foretold.
  return promised.some((path) => !all.has(path) && /-of-\d{5}-[0-9a-f]{8,}/.test(path))
    ? []
    : [...new Set(promised)].filter((path) => !all.has(path))
}

/** The configuration that is meant: by name, the only one, or the one marked as default. */
export function chooseConfig(id: string, configs: readonly CardConfig[], subset: string | null): CardConfig | undefined {
  if (configs.length === 0) return undefined
  const names = configs.map(({ name }) => name)
  const shown = names.slice(0, 30).join(', ') + (names.length > 30 ? ', …' : '')
  if (subset !== null) {
    const named = configs.find(({ name }) => name === subset)
    if (named !== undefined) return named
    throw new UnslothError('DATA', `data.subset: ${id} has no configuration ${quote(subset)}.`, { hint: `It has ${shown}.` })
  }
  const chosen = configs.length === 1 ? configs[0] : configs.find(({ isDefault }) => isDefault)
  if (chosen !== undefined) return chosen
  throw new UnslothError('DATA', `${id} has ${names.length} configurations, and data.subset does not say which one is meant.`, {
    hint: `Set data.subset to one of ${shown}.`,
  })
}

/** The files of each split of a configuration; without one, of the repository or of the folder that `subset` names. */
export function splitsOf(
  id: string,
  config: CardConfig | undefined,
  subset: string | null,
  paths: readonly string[],
): SplitFiles {
  const folder = config?.folder ?? (config === undefined && subset !== null ? subset : '')
  const below = folder === '' ? paths : paths.filter((path) => path.startsWith(`${folder}/`))
  if (config === undefined && subset !== null && below.length === 0)
    throw new UnslothError('DATA', `data.subset: ${id} has no configuration and no folder ${quote(subset)}.`, {
      hint: 'Remove data.subset, or name a folder of the repository.',
    })
  if (config?.splits === undefined) return conventionalSplits(dataPaths(below))
  const prefix = folder === '' ? '' : `${folder}/`
  return new Map(
    [...config.splits]
      .map(([split, patterns]) => {
        const remote = patterns.find((pattern) => /^[a-z]+:\/\//i.test(pattern))
        if (remote !== undefined)
          throw new UnslothError('DATA', `${id}: its split ${split} is at ${quote(remote)}, outside of the repository.`, {
            hint: 'Download it yourself and name the file in data.local_dataset.',
          })
        const found = new Set(
          patterns.flatMap((pattern) =>
            paths.filter((path) => !isHidden(path) && matchesGlob(`${prefix}${pattern}`, path)).sort(),
          ),
        )
        return [split, [...found]] as const
      })
      .filter(([, found]) => found.length > 0),
  )
}

/** Whether every file is of a kind that can be read. */
export const isReadable = (paths: readonly string[]): boolean =>
  paths.length > 0 && paths.every((path) => kinds.some(([, end]) => end.test(path)))
