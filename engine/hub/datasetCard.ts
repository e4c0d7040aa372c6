import { parse } from 'yaml'
import * as z from 'zod'

/** A configuration that a data set's card names. */
export interface CardConfig {
  readonly name: string
  readonly isDefault: boolean
  /** Folder that patterns are relative to; empty: the whole repository. */
  readonly folder: string
  /** Patterns of each split; undefined: splits are told by names of files. */
  readonly splits: ReadonlyMap<string, readonly string[]> | undefined
}

const patterns = z.union([z.string().transform((text) => [text]), z.array(z.string())])
const dataFiles = z.union([
  z.array(z.object({ split: z.coerce.string().default('train'), path: patterns })),
  patterns.transform((path) => [{ split: 'train', path }]),
  z.record(z.string(), patterns).transform((splits) => Object.entries(splits).map(([split, path]) => ({ split, path }))),
])
const configSchema = z.object({
  config_name: z.coerce.string().default('default'),
  data_files: dataFiles.optional(),
  data_dir: z.string().optional(),
  default: z.boolean().optional(),
})

const trimmed = (folder: string): string => folder.replace(/^\.?\/+|\/+$/g, '').replace(/^\.$/, '')

/**
 * The configurations in the front matter of a card (README.md). A card that has none, or whose front matter cannot be read, gives an
 * empty list: the data are then found by the names of files.
 */
export function readDatasetCard(text: string): CardConfig[] {
  const front = /^\ufeff?---[ \t]*\r?\n([\s\S]*?)\r?\n---[ \t]*(?:\r?\n|$)/.exec(text)?.[1]
  if (front === undefined) return []
  let card: unknown
  try {
    card = parse(front, { maxAliasCount: 100, logLevel: 'silent' })
  } catch {
    return []
  }
  const configs = z.object({ configs: z.array(z.unknown()) }).safeParse(card)
  if (!configs.success) return []
  return configs.data.configs.flatMap((entry) => {
    const parsed = configSchema.safeParse(entry)
    if (!parsed.success) return []
    const { config_name: name, data_files: files, data_dir: folder, default: isDefault } = parsed.data
    const splits =
      files &&
      new Map(
        files.map(({ split }) => [
          split,
          files
            .filter((other) => other.split === split)
            .flatMap(({ path }) => path.map((pattern) => pattern.replace(/^\.\//, ''))),
        ]),
      )
    return [{ name, isDefault: isDefault === true || name === 'default', folder: trimmed(folder ?? ''), splits }]
  })
}
