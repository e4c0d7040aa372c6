import { readdir, stat } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { quote } from '../io/printable.ts'
import { readError } from '../io/fileSystem.ts'

const dataFile = /\.(?:jsonl|ndjson|json|csv|tsv|txt|text|md|markdown|parquet)(?:\.gz)?$/i

/** Other words for the three usual splits in names of files. */
const splitWords: Readonly<Record<string, readonly string[]>> = {
  train: ['train', 'training'],
  validation: ['validation', 'valid', 'val', 'dev'],
  test: ['test', 'testing', 'eval', 'evaluation'],
}

const hasWord = (path: string, words: readonly string[]): boolean =>
  path
    .toLowerCase()
    .split(/[^a-z0-9]+/)
    .some((part) => words.includes(part))

async function filesBelow(folder: string, depth: number): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
    throw readError(error, folder, 'data set')
  })
  const found = await Promise.all(
    entries
      .filter(({ name }) => !name.startsWith('.'))
      .map(async (entry) => {
        const path = join(folder, entry.name)
        if (entry.isDirectory()) return depth > 0 ? filesBelow(path, depth - 1) : []
        return dataFile.test(entry.name) && !/^(?:dataset_infos?|dataset_dict|state|README)\./i.test(entry.name) ? [path] : []
      }),
  )
  return found.flat().sort()
}

/** Files of a split in a folder, told by their names as `datasets` does; without such names all files are the split `train`. */
async function splitFiles(folder: string, split: string): Promise<string[]> {
  const all = await filesBelow(folder, 3)
  if (all.length === 0)
    throw new UnslothError('DATA', `${folder}: no data file in this folder.`, {
      hint: 'Data files end in .jsonl, .json, .csv, .tsv, .parquet, .txt or .md, each also with .gz.',
    })
  const shown = new Map(all.map((file) => [file, relative(folder, file)]))
  const of = (name: string): string[] => all.filter((file) => hasWord(shown.get(file)!, splitWords[name] ?? [name.toLowerCase()]))
  const chosen = of(split)
  if (chosen.length > 0) return chosen
  const named = new Set(Object.keys(splitWords).flatMap(of))
  const rest = all.filter((file) => !named.has(file))
  if (split === 'train' && rest.length > 0) return rest
  throw new UnslothError('DATA', `${folder}: no file of this folder belongs to the split ${quote(split)}.`, {
    hint:
      `Its files are ${[...shown.values()]
        .slice(0, 6)
        .map((name) => name.split(sep).join('/'))
        .join(', ')}${all.length > 6 ? ', …' : ''}. ` + 'Choose another data.split, or name the files in data.local_dataset.',
  })
}

/** The data files of paths that may be folders. `split`: which of a folder's files; a file alone is the split `train`. */
export async function datasetFiles(paths: readonly string[], split = 'train'): Promise<string[]> {
  const files = await Promise.all(
    paths.map(async (path) => {
      const info = await stat(path).catch((error: unknown) => {
        throw readError(error, path, 'data set')
      })
      if (info.isDirectory()) return splitFiles(path, split)
      if (split === 'train') return [path]
      throw new UnslothError('DATA', `${path}: a local file has no split named ${quote(split)}, only "train".`, {
        hint: 'Name the file of that split, or take a slice such as train[:90%].',
      })
    }),
  )
  return files.flat()
}
