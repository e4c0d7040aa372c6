import { readFile } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'
import { quote } from '../io/printable.ts'
import { readDatasetCard } from './datasetCard.ts'
import { chooseConfig, isReadable, missingShards, splitsOf, type SplitFiles } from './datasetSplits.ts'
import { parseRepository, type Repository } from './repository.ts'
import { Snapshot, type HubOptions } from './snapshot.ts'

/** Where the Hub keeps what it made of data sets in other formats. */
const parquetBranch = 'refs/convert/parquet'

export interface DatasetChoice {
  readonly subset: string | null
  /** Splits wanted, by name. */
  readonly splits: readonly string[]
}

/** Data of the Hub as files in the cache. */
export interface HubDataset {
  readonly id: string
  readonly commit: string
  /** Absolute paths of the files of each split that was wanted. */
  readonly splits: ReadonlyMap<string, readonly string[]>
}

async function describe(snapshot: Snapshot, { subset }: DatasetChoice): Promise<SplitFiles> {
  const paths = [...snapshot.files.keys()]
  if (snapshot.files.has('README.md')) await snapshot.fetch(['README.md'])
  const configs = snapshot.files.has('README.md') ? readDatasetCard(await readFile(snapshot.path('README.md'), 'utf8')) : []
  return splitsOf(snapshot.repository.id, chooseConfig(snapshot.repository.id, configs, subset), subset, paths)
}

/** `<configuration>/<split>/0000.parquet` of the branch that the Hub makes. */
async function converted(
  repository: Repository,
  { subset }: DatasetChoice,
  options: HubOptions,
): Promise<{ snapshot: Snapshot; splits: SplitFiles } | undefined> {
  const snapshot = await Snapshot.open({ ...repository, revision: parquetBranch }, options).catch((error: unknown) => {
    if (UnslothError.is(error, 'HUB')) return undefined
    throw error
  })
  if (snapshot === undefined) return undefined
  const paths = [...snapshot.files.keys()].filter((path) => /^[^/]+\/[^/]+\/[^/]+\.parquet$/.test(path)).sort()
  const names = [...new Set(paths.map((path) => path.slice(0, path.indexOf('/'))))]
  const config = chooseConfig(
    repository.id,
    names.map((name) => ({ name, isDefault: name === 'default', folder: name, splits: undefined })),
    subset,
  )
  const splits = new Map<string, string[]>()
  for (const path of paths.filter((file) => file.startsWith(`${config?.name}/`))) {
    const split = path.split('/')[1]!
    if (split.startsWith('partial-'))
      options.onNotice?.(
        `${repository.id}: the Hub has converted only the beginning of its split ${split.slice(8)}, and that is used.`,
      )
    const name = split.replace(/^partial-/, '')
    splits.set(name, [...(splits.get(name) ?? []), path])
  }
  return splits.size === 0 ? undefined : { snapshot, splits }
}

/** Whether a data set of this name could be on the Hub. */
export const couldBeDataset = (name: string): boolean => {
  try {
    return parseRepository('dataset', name) !== undefined
  } catch {
    return true
  }
}

function unreadable({ repository: { id }, files }: Snapshot): UnslothError {
  const kinds = new Set(
    [...files.keys()]
      .flatMap((path) => /\.(\w{1,10})$/.exec(path)?.[1] ?? [])
      .filter((end) => !/^(?:md|gitattributes)$/.test(end)),
  )
  const found =
    kinds.size === 0
      ? 'no data files'
      : `files of the kinds ${[...kinds]
          .slice(0, 8)
          .map((end) => `.${end}`)
          .join(', ')}`
  return new UnslothError('DATA', `${id} has ${found}, and no JSON, Parquet, CSV or text that can be read.`, {
    hint: 'Choose another data set, or convert it to JSONL and name the file in data.local_dataset.',
  })
}

/**
 * Fetches the files of some splits of a data set, as far as they are not in the cache: by the configurations of its card, else by
 * the conventions for names of files; data in other formats as the Parquet files that the Hub makes of them.
 */
export async function fetchDataset(name: string, choice: DatasetChoice, options: HubOptions = {}): Promise<HubDataset> {
  const repository = parseRepository('dataset', name)
  if (repository === undefined)
    throw new UnslothError('HUB', `${quote(name)} is no name of a repository.`, { hint: 'Names look like yahma/alpaca-cleaned.' })
  let snapshot = await Snapshot.open(repository, options)
  let splits = await describe(snapshot, choice)
  if (![...splits.values()].some(isReadable)) {
    const made = repository.revision === 'main' ? await converted(repository, choice, options) : undefined
    if (made === undefined) throw unreadable(snapshot)
    options.onNotice?.(`${repository.id} is read as the Parquet files that the Hub has made of it (${parquetBranch}).`)
    ;({ snapshot, splits } = made)
  }
  const chosen = new Map(
    choice.splits.map((split) => {
      const files = splits.get(split)
      if (files === undefined)
        throw new UnslothError('DATA', `${repository.id} has no split ${quote(split)}.`, {
          hint: `It has ${[...splits.keys()].slice(0, 30).join(', ')}. Set data.split (and data.eval_split) to one of these.`,
        })
      return [split, files] as const
    }),
  )
  if (!snapshot.complete)
    options.onNotice?.(
      `${repository.id} was fetched by another program, and only it knows which files belong to it; those that are there are read.`,
    )
  const wanted = [...chosen.values()].flat()
  const missing = missingShards(wanted)
  if (missing.length > 0)
    throw new UnslothError(
      'DATA',
      `${repository.id}: ${quote(missing[0]!)}${missing.length > 1 ? ` and ${missing.length - 1} more` : ''} ${snapshot.complete ? 'should be there by the names of the other files' : 'was never fetched'}.`,
      {
        hint: snapshot.complete
          ? 'The data set is incomplete; try another revision (name@revision).'
          : 'Unset HF_HUB_OFFLINE once: what is there is not fetched again.',
      },
    )
  await snapshot.fetch(wanted)
  return {
    id: repository.id,
    commit: snapshot.commit,
    splits: new Map([...chosen].map(([split, files]) => [split, files.map((file) => snapshot.path(file))])),
  }
}
