import { statSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { describeError } from '#shared/errors.ts'
import type { Recipe } from '#shared/recipe.ts'
import { readSpeeds, speedFile } from '../../../engine/bench/speedFigures.ts'
import { readJsonObject } from '../../../engine/io/modelFolder.ts'
import { looksLikePath, resolveRecipePaths } from '../../../engine/recipe/recipePaths.ts'
import { listCheckpoints } from '../../../engine/run/checkpoints.ts'
import { runFiles } from '../../../engine/run/runFiles.ts'
import { listRuns } from '../../../engine/run/runReader.ts'
import { availableMemory, totalMemory } from '../../../engine/runtime/memory.ts'
import { bundledModels } from '../../../engine/runtime/resolveModel.ts'
import type {
  DatasetFacts,
  FoundCheckpoint,
  FoundDataset,
  FoundDevice,
  FoundModel,
  ModelFacts,
  Outcome,
  RecipePlan,
  SampleLengths,
  TokenFacts,
  Workspace,
} from '../workspace.ts'
import type { Background } from './background.ts'
import { Refreshed, StampedCache } from './cache.ts'
import { datasetFacts } from './datasetFacts.ts'
import { hubCacheFolder } from '../../../engine/hub/settings.ts'
import { cachedDatasetFile, cachedModels } from './hubCache.ts'
import { absolutePath, modelFacts, modelFolder } from './modelFacts.ts'
import { scanFolders } from './scanFolders.ts'

/** Rows and bytes of data that token lengths are measured on. */
const tokenRows = 1000
const tokenBytes = 1 << 20

export interface WorldOptions {
  readonly roots: readonly string[]
  readonly background: Background
  readonly hubCache?: string
  /** Where measured speeds are kept. */
  readonly speedFile?: string
  /** Milliseconds after which folders are looked at again. */
  readonly refreshAfter?: number
}

const problemOf = (error: unknown): string => describeError(error).split('\n')[0]!

async function stampOf(path: string): Promise<string> {
  return stat(path).then(
    ({ size, mtimeMs }) => `${size}:${mtimeMs}`,
    () => 'none',
  )
}

async function attempt<T>(work: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { ok: true, value: await work() }
  } catch (error) {
    return { ok: false, missing: false, problem: problemOf(error) }
  }
}

/** The disk around recipes, looked at in bounds and remembered. One for all recipes of a window. */
export class World {
  private roots: readonly string[]
  private readonly background: Background
  private readonly hubCache: string
  private readonly speedFile: string
  private readonly scan: Refreshed<Awaited<ReturnType<typeof scanFolders>>>
  private readonly hub: Refreshed<Awaited<ReturnType<typeof cachedModels>>>
  private readonly models = new StampedCache<Outcome<ModelFacts>>()
  private readonly architectures = new StampedCache<string | undefined>(1000)
  private readonly datasets = new StampedCache<Outcome<DatasetFacts>>()
  private readonly plans = new StampedCache<Outcome<RecipePlan>>(50)
  private readonly lengths = new StampedCache<Outcome<TokenFacts>>(50)
  private engineDevices: readonly FoundDevice[] | undefined

  constructor({
    roots,
    background,
    hubCache = hubCacheFolder(),
    speedFile: speeds = speedFile(),
    refreshAfter = 15_000,
  }: WorldOptions) {
    this.roots = roots
    this.background = background
    this.hubCache = hubCache
    this.speedFile = speeds
    this.scan = new Refreshed(() => scanFolders(this.roots), refreshAfter)
    this.hub = new Refreshed(() => cachedModels(this.hubCache), 4 * refreshAfter)
  }

  setRoots(roots: readonly string[]): void {
    this.roots = roots
    this.scan.invalidate()
  }

  /** What a running engine says about its devices; undefined when it stopped. */
  setDevices(devices: readonly FoundDevice[] | undefined): void {
    this.engineDevices = devices
  }

  /** Files changed: folders are looked at again at the next question. */
  invalidate(): void {
    this.scan.invalidate()
    this.models.clear()
    this.background.forget()
  }

  /** Looks around before anyone asks. */
  warmUp(): void {
    void this.scan.get().catch(() => undefined)
    void this.hub.get().catch(() => undefined)
  }

  dispose(): void {
    this.background.dispose()
  }

  devices(): FoundDevice[] {
    if (this.engineDevices !== undefined) return [...this.engineDevices]
    return [{ id: 'cpu', label: 'the processor', freeBytes: availableMemory(), totalBytes: totalMemory() }]
  }

  /** The memory that a run on a device has: `auto` is the first one that the engine names. */
  private deviceFor(name: string): FoundDevice | undefined {
    const devices = this.devices()
    return name === 'auto' ? devices[0] : devices.find(({ id }) => id === name || id.startsWith(`${name}:`))
  }

  /** The world as a recipe in the folder `base` names it. */
  at(base: string): Workspace {
    const shown = (path: string): string => {
      const name = relative(base, path).split(sep).join('/')
      return name === '' ? '.' : name.startsWith('../../..') ? path : name
    }
    const model = (name: string, revision: string | null = null): Promise<Outcome<ModelFacts>> => this.model(name, base, revision)
    const dataset = (name: string): Promise<Outcome<DatasetFacts>> => this.dataset(name, base)
    return {
      models: () => this.foundModels(shown),
      datasets: async (): Promise<FoundDataset[]> => {
        const { datasets } = await this.scan.get()
        return datasets.map(({ path, bytes }) => ({ name: shown(path), path, bytes })).sort(byName)
      },
      checkpoints: (outputDir) => this.checkpoints(absolutePath(outputDir, base), shown),
      devices: () => Promise.resolve(this.devices()),
      model,
      dataset,
      columns: async (name) => {
        const facts = await dataset(name)
        return facts.ok ? facts.value.columns : []
      },
      targetModules: async (name) => {
        const facts = await model(name)
        return facts.ok ? facts.value.targetModules : []
      },
      isPath: looksLikePath,
      kindOf: (name) => {
        const found = statSync(absolutePath(name, base), { throwIfNoEntry: false })
        return found === undefined ? undefined : found.isDirectory() ? 'folder' : 'file'
      },
      plan: (recipe, lengths) => this.plan(recipe, base, lengths),
      tokens: (recipe) => this.tokens(recipe, base),
    }
  }

  private async foundModels(shown: (path: string) => string): Promise<FoundModel[]> {
    const [{ models }, cached] = await Promise.all([this.scan.get(), this.hub.get()])
    const local = await Promise.all(
      models.map(async ({ folder, kind, bytes }): Promise<FoundModel> => ({
        name: localName(shown(folder)),
        folder,
        kind,
        bytes,
        from: 'workspace',
        architecture: await this.architecture(folder, kind),
      })),
    )
    const hub = await Promise.all(
      cached.map(async ({ id, folder }): Promise<FoundModel> => ({
        name: id,
        folder,
        kind: 'model',
        bytes: 0,
        from: 'hub cache',
        architecture: await this.architecture(folder, 'model'),
      })),
    )
    const bundled = Object.keys(bundledModels).map((name): FoundModel => ({
      name,
      folder: name,
      kind: 'model',
      bytes: 0,
      from: 'bundled',
      architecture: undefined,
    }))
    return [...local.sort(byName), ...hub.sort(byName), ...bundled]
  }

  private architecture(folder: string, kind: 'model' | 'adapter'): Promise<string | undefined> {
    if (kind === 'adapter') return Promise.resolve(undefined)
    return this.architectures.get(folder, '', async () => {
      const config = await readJsonObject(join(folder, 'config.json')).catch(() => undefined)
      const named = config?.architectures
      return Array.isArray(named) && typeof named[0] === 'string' ? named[0] : undefined
    })
  }

  private async model(name: string, base: string, revision: string | null): Promise<Outcome<ModelFacts>> {
    const folder = await modelFolder(name, base, revision, this.hubCache)
    if (!folder.ok) return folder
    const stamp = await stampOf(join(folder.value, 'config.json'))
    return this.models.get(folder.value, stamp, () => attempt(() => modelFacts(folder.value, 0)))
  }

  private async dataset(name: string, base: string): Promise<Outcome<DatasetFacts>> {
    const path = absolutePath(name, base)
    const found = await stat(path).catch(() => undefined)
    if (found === undefined) {
      const file = await cachedDatasetFile(name, this.hubCache)
      if (file !== undefined) return this.datasets.get(file, await stampOf(file), () => attempt(() => datasetFacts(file)))
      const problem = looksLikePath(name) ? `there is no file ${name}` : `${name} is not a file here`
      return { ok: false, missing: true, problem }
    }
    if (found.isDirectory()) return { ok: false, missing: false, problem: `${name} is a folder, where a file is expected` }
    return this.datasets.get(path, `${found.size}:${found.mtimeMs}`, () => attempt(() => datasetFacts(path)))
  }

  private async checkpoints(folder: string, shown: (path: string) => string): Promise<FoundCheckpoint[]> {
    const runs = (await listRuns(folder)).slice(0, 50)
    return runs.flatMap(({ dir, status, resumable }) =>
      listCheckpoints(join(dir, runFiles.checkpoints))
        .reverse()
        .map(({ path, step, loss, createdAt }) => ({
          name: localName(shown(path)),
          path,
          step,
          loss,
          run: status.name,
          runDirectory: dir,
          totalSteps: status.totalSteps,
          resumable,
          createdAt,
        })),
    )
  }

  private async plan(recipe: Recipe, base: string, lengths: SampleLengths = {}): Promise<Outcome<RecipePlan>> {
    const folder = await modelFolder(recipe.model.name, base, recipe.model.revision, this.hubCache)
    if (!folder.ok) return folder
    const device = this.deviceFor(recipe.training.device)
    const { training, lora } = recipe
    const stamp = await stampOf(join(folder.value, 'config.json'))
    const key = JSON.stringify([
      folder.value,
      training,
      lora,
      recipe.data.eval_split,
      recipe.data.eval_dataset.length,
      lengths,
      device?.id,
      coarse(device?.freeBytes),
      await stampOf(this.speedFile),
    ])
    const planned = await this.plans.get(key, stamp, () =>
      attempt(() =>
        this.background.plan({
          recipe,
          folder: folder.value,
          longestSample: lengths.longest,
          usualSample: lengths.usual,
          device: device?.id ?? 'cpu',
          speeds: readSpeeds(this.speedFile),
          freeBytes: device?.freeBytes,
          deviceBytes: device?.totalBytes,
          overhead: device?.overhead,
        }),
      ),
    )
    // Free memory changes all the time; the plan is kept and only compared anew.
    return planned.ok
      ? { ok: true, value: { ...planned.value, freeBytes: device?.freeBytes, deviceBytes: device?.totalBytes } }
      : planned
  }

  private async tokens(recipe: Recipe, base: string): Promise<Outcome<TokenFacts>> {
    const folder = await modelFolder(recipe.model.name, base, recipe.model.revision, this.hubCache)
    if (!folder.ok) return folder
    const { data } = resolveRecipePaths(recipe, base)
    const named = data.local_dataset.length > 0 ? data.local_dataset : data.dataset === null ? [] : [data.dataset]
    const first = named[0] === undefined ? undefined : await this.dataset(named[0], base)
    if (!first?.ok) return first ?? { ok: false, missing: true, problem: 'the recipe names no data' }
    // A name of the Hub stands for a file of its cache.
    const files = [first.value.path, ...named.slice(1)]
    if (first.value.format === undefined)
      return { ok: false, missing: false, problem: first.value.problem ?? 'no format was recognised' }
    const perRow = first.value.bytes / Math.max(1, first.value.rows)
    const rows = Math.max(20, Math.min(tokenRows, Math.floor(tokenBytes / Math.max(1, perRow)), data.max_samples ?? tokenRows))
    const whole = files.length === 1 && first.value.exact && first.value.rows <= rows
    const stamps = await Promise.all([...files, join(folder.value, 'tokenizer.json')].map(stampOf))
    const key = JSON.stringify([files, folder.value, data.format_type, data.text_column, data.chat_template])
    return this.lengths.get(key, `${rows} ${stamps.join()}`, () =>
      attempt(() => this.background.tokens({ data, files, folder: folder.value, rows, whole })),
    )
  }
}

/** Free memory in steps of a fifth: which plan fits changes with it, but not with every page. */
const coarse = (bytes: number | undefined): number => (bytes === undefined ? -1 : Math.round(Math.log2(Math.max(1, bytes)) * 4))

const byName = (a: { readonly name: string }, b: { readonly name: string }): number =>
  a.name < b.name ? -1 : a.name > b.name ? 1 : 0

/** A folder's path as a recipe names it: `./` keeps `org/model` from being taken for a Hub id. */
const localName = (name: string): string => (/^(?:\.{1,2}(?:\/|$)|\/|~|[A-Za-z]:)/.test(name) ? name : `./${name}`)
