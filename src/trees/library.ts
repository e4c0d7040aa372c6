import { readdir, readFile, stat } from 'node:fs/promises'
import { basename, join, relative, resolve } from 'node:path'
import { scanFolders } from '../language/world/scanFolders.ts'
import { cachedModels } from '../language/world/hubCache.ts'
import { StampedCache } from '../language/world/cache.ts'
import { delimitedFacts, type TableFacts } from './tableFacts.ts'

export type ModelOrigin = 'workspace' | 'hub cache' | 'bundled'

export interface LibraryModel {
  readonly kind: 'model' | 'adapter' | 'gguf'
  /** As people name it: a path from the workspace folder, a Hub id, a bundled name. */
  readonly name: string
  /** Folder of a model or adapter, file of a GGUF; absolute. */
  readonly path: string
  readonly origin: ModelOrigin
  readonly bytes: number
}

export interface LibraryDataset {
  readonly name: string
  readonly path: string
  readonly bytes: number
  readonly origin: 'workspace' | 'bundled'
}

/** A line of what is known about a model. */
export interface Fact {
  readonly label: string
  readonly value: string
}

export interface LibraryOptions {
  /** Folders of the workspace, with the names to show paths with. */
  readonly roots: () => readonly { readonly name: string; readonly path: string }[]
  readonly modelFolders: () => readonly string[]
  readonly hubCache: () => boolean
  /** Files by name pattern, as the editor's search finds them. */
  readonly findFiles: (pattern: string) => Promise<readonly string[]>
  readonly extensionPath: string
}

interface Contents {
  readonly models: readonly LibraryModel[]
  readonly datasets: readonly LibraryDataset[]
}

/** The models and data sets that a recipe could name here. Folders are looked at when somebody asks, and again after `invalidate`. */
export class Library {
  readonly #options: LibraryOptions
  readonly #listeners = new Set<() => void>()
  readonly #facts = new StampedCache<TableFacts>()
  readonly #modelFacts = new StampedCache<readonly Fact[]>()
  #contents: Promise<Contents> | undefined

  constructor(options: LibraryOptions) {
    this.#options = options
  }

  onDidChange(listener: () => void): { dispose(): void } {
    this.#listeners.add(listener)
    return { dispose: () => this.#listeners.delete(listener) }
  }

  invalidate(): void {
    this.#contents = undefined
    for (const listener of this.#listeners) listener()
  }

  async models(): Promise<readonly LibraryModel[]> {
    return (await this.#look()).models
  }

  async datasets(): Promise<readonly LibraryDataset[]> {
    return (await this.#look()).datasets
  }

  get starterFolder(): string {
    return join(this.#options.extensionPath, 'engine', 'starter')
  }

  /** Rows and columns, from a bounded look at the file. */
  async tableFacts(path: string): Promise<TableFacts> {
    const { size, mtimeMs } = await stat(path)
    return this.#facts.get(path, `${size}:${mtimeMs}`, () => describeTable(path))
  }

  /** What headers and configuration say; weights are not read. */
  async modelFacts({ kind, path }: LibraryModel): Promise<readonly Fact[]> {
    const file = kind === 'gguf' ? path : join(path, kind === 'adapter' ? 'adapter_config.json' : 'config.json')
    const { size, mtimeMs } = await stat(file)
    return this.#modelFacts.get(path, `${size}:${mtimeMs}`, () => (kind === 'gguf' ? describeGguf(path) : describeModel(path)))
  }

  /** Adapters that name this model as their base. */
  async adaptersOf(model: LibraryModel): Promise<readonly LibraryModel[]> {
    if (model.kind !== 'model') return []
    const adapters = (await this.models()).filter(({ kind }) => kind === 'adapter')
    const bases = await Promise.all(adapters.map(({ path }) => baseOf(path)))
    return adapters.filter((_, at) => {
      const base = bases[at]
      return (
        base !== undefined &&
        (base === model.name || resolve(adapters[at]!.path, base) === model.path || resolve(base) === model.path)
      )
    })
  }

  #look(): Promise<Contents> {
    this.#contents ??= this.#scan().catch((error: unknown) => {
      this.#contents = undefined
      throw error
    })
    return this.#contents
  }

  async #scan(): Promise<Contents> {
    const { roots, modelFolders, hubCache, findFiles } = this.#options
    const folders = roots()
    const paths = [...folders.map(({ path }) => path), ...modelFolders().map((folder) => resolve(folder))]
    const [scan, gguf, tables, cached, bundled] = await Promise.all([
      scanFolders(paths),
      findFiles('**/*.gguf'),
      findFiles('**/*.{csv,tsv,parquet}'),
      hubCache() ? cachedModels() : [],
      this.#bundled(),
    ])
    const label = (path: string): string => shortPath(path, folders)
    const local = scan.models.map(({ folder, kind, bytes }): LibraryModel => ({
      kind,
      name: label(folder),
      path: folder,
      origin: 'workspace',
      bytes,
    }))
    const files = await Promise.all(
      gguf.map(async (path): Promise<LibraryModel> => ({
        kind: 'gguf',
        name: label(path),
        path,
        origin: 'workspace',
        bytes: await sizeOf(path),
      })),
    )
    const hub = await Promise.all(
      cached.map(async ({ id, folder }): Promise<LibraryModel> => ({
        kind: 'model',
        name: id,
        path: folder,
        origin: 'hub cache',
        bytes: await weightsIn(folder),
      })),
    )
    const seen = new Set(scan.datasets.map(({ path }) => path))
    const more = await Promise.all(
      tables.filter((path) => !seen.has(path)).map(async (path) => ({ path, bytes: await sizeOf(path) })),
    )
    const datasets = [...scan.datasets, ...more].map(({ path, bytes }): LibraryDataset => ({
      name: label(path),
      path,
      bytes,
      origin: 'workspace',
    }))
    const starterData = join(this.starterFolder, 'fables.jsonl')
    if (folders.length > 0)
      datasets.push({ name: 'fables.jsonl', path: starterData, bytes: await sizeOf(starterData), origin: 'bundled' })
    return { models: [...byName(local), ...byName(files), ...byName(hub), ...bundled], datasets: byName(datasets) }
  }

  async #bundled(): Promise<LibraryModel[]> {
    const path = join(this.starterFolder, 'model')
    const bytes = await weightsIn(path)
    return bytes === 0 ? [] : [{ kind: 'model', name: 'stories260k', path, origin: 'bundled', bytes }]
  }
}

const byName = <T extends { readonly name: string }>(items: readonly T[]): T[] =>
  [...items].sort((a, b) => a.name.localeCompare(b.name))
const sizeOf = (path: string): Promise<number> =>
  stat(path).then(
    ({ size }) => size,
    () => 0,
  )

async function weightsIn(folder: string): Promise<number> {
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith('.safetensors'))
  return (await Promise.all(names.map((name) => sizeOf(join(folder, name))))).reduce((sum, size) => sum + size, 0)
}

async function baseOf(adapter: string): Promise<string | undefined> {
  try {
    const value = JSON.parse(await readFile(join(adapter, 'adapter_config.json'), 'utf8')) as {
      base_model_name_or_path?: unknown
    }
    return typeof value.base_model_name_or_path === 'string' ? value.base_model_name_or_path : undefined
  } catch {
    return undefined
  }
}

/** The path from the workspace folder it is in, led by that folder's name when there are several. */
export function shortPath(path: string, roots: readonly { readonly name: string; readonly path: string }[]): string {
  for (const root of roots) {
    const inside = relative(root.path, path)
    if (inside.startsWith('..') || resolve(inside) === inside) continue
    const shown = inside === '' ? basename(path) : inside.replaceAll('\\', '/')
    return roots.length > 1 ? `${root.name}/${shown}` : shown
  }
  return path
}

async function describeModel(path: string): Promise<readonly Fact[]> {
  const [{ inspectPath }, { formatBytes, formatCompact }] = await Promise.all([
    import('../../engine/cli/inspect.ts'),
    import('#shared/units.ts'),
  ])
  const { facts, parameters, bytes, files } = await inspectPath(path)
  const types = parameters.byType.map(({ type }) => type).join(', ')
  const shown = [
    'Architecture',
    'Base model',
    'Context length',
    'Rank (r)',
    'Alpha',
    'Adapted modules',
    'Vocabulary',
    'Tokenizer',
  ]
  return [
    ...Object.entries(facts)
      .filter(([label]) => shown.includes(label))
      .map(([label, value]) => ({ label, value: String(value) })),
    { label: 'Parameters', value: formatCompact(parameters.total) },
    { label: 'Data type', value: types },
    { label: 'Size', value: `${formatBytes(bytes)}${files.length > 1 ? ` in ${files.length} files` : ''}` },
  ]
}

async function describeGguf(path: string): Promise<readonly Fact[]> {
  const [{ ggufFacts }, { formatBytes, formatCompact, formatCount }] = await Promise.all([
    import('../../engine/io/ggufFacts.ts'),
    import('#shared/units.ts'),
  ])
  const { architecture, name, contextLength, parameters, types } = await ggufFacts(path)
  return [
    { label: 'Architecture', value: name === undefined ? architecture : `${architecture} (${name})` },
    ...(contextLength === undefined ? [] : [{ label: 'Context length', value: formatCount(contextLength) }]),
    { label: 'Parameters', value: formatCompact(parameters) },
    { label: 'Data type', value: types.join(', ') },
    { label: 'Size', value: formatBytes(await sizeOf(path)) },
  ]
}

async function describeTable(path: string): Promise<TableFacts> {
  if (/\.(csv|tsv)$/i.test(path)) return delimitedFacts(path)
  if (/\.parquet$/i.test(path)) return (await import('./parquetFacts.ts')).parquetFacts(path)
  const { datasetFacts } = await import('../language/world/datasetFacts.ts')
  const { rows, exact, columns, format, problem } = await datasetFacts(path)
  return { rows, exact, columns, format: format ?? 'unknown', ...(problem === undefined ? {} : { problem }) }
}
