import type { Recipe } from '#shared/recipe.ts'
import type { DeviceEntry, MemoryPart } from '#shared/protocol.ts'

/** A model that can be named in a recipe. */
export interface FoundModel {
  /** As a recipe names it: a path relative to the recipe, a bundled name or a Hub id. */
  readonly name: string
  readonly folder: string
  readonly kind: 'model' | 'adapter'
  readonly from: 'workspace' | 'hub cache' | 'bundled'
  readonly architecture: string | undefined
  readonly bytes: number
}

export interface FoundDataset {
  /** Path relative to the recipe. */
  readonly name: string
  readonly path: string
  readonly bytes: number
}

/** What the beginning of a data set tells. */
export interface DatasetFacts {
  readonly path: string
  readonly bytes: number
  /** Columns of the first rows, in their order. */
  readonly columns: readonly string[]
  /** Format of the rows, or why none was recognised. */
  readonly format: string | undefined
  readonly problem: string | undefined
  readonly rows: number
  /** Whether `rows` was counted and not estimated from the size. */
  readonly exact: boolean
}

export interface ModelFacts {
  readonly folder: string
  readonly architecture: string
  readonly layers: number
  readonly hidden: number
  readonly context: number
  readonly vocabulary: number
  readonly parameters: number
  readonly bytes: number
  /** Last parts of the names of layers that can be adapted. */
  readonly targetModules: readonly string[]
  /** Full paths of those, for targets that name one layer. */
  readonly modulePaths: ReadonlySet<string>
}

export interface FoundCheckpoint {
  /** Path relative to the recipe. */
  readonly name: string
  readonly path: string
  readonly step: number
  readonly loss: number | null
  readonly run: string
  readonly runDirectory: string
  readonly totalSteps: number | null
  /** Whether the run ended before its last step and can go on. */
  readonly resumable: boolean
  readonly createdAt: string
}

export interface FoundDevice {
  readonly id: string
  readonly label: string
  readonly freeBytes?: number
  readonly totalBytes?: number
  /** See DeviceEntry. */
  readonly overhead?: DeviceEntry['overhead']
}

/** What the engine's planner says about a recipe. */
export interface RecipePlan {
  readonly totalBytes: number
  readonly parts: readonly MemoryPart[]
  readonly summary: string
  readonly trainableParameters: number
  readonly parameters: number
  /** By the speed that was measured on this machine; undefined where nothing was. */
  readonly secondsPerStep: number | undefined
  /** Of the device that the recipe names, where known. */
  readonly freeBytes: number | undefined
  readonly deviceBytes: number | undefined
}

/** Lengths of the first samples in tokens. */
export interface TokenFacts {
  readonly samples: number
  readonly mean: number
  readonly p50: number
  readonly p99: number
  readonly longest: number
  /** Whether every row was looked at. */
  readonly whole: boolean
}

/** What a plan needs of the data, as far as it is known. */
export interface SampleLengths {
  /** Tokens of the longest sample of all. */
  readonly longest?: number
  /** Tokens of a usual sample. */
  readonly usual?: number
}

/** Lengths for a plan: the longest sample counts only where every row was looked at. */
export function lengthsOf(tokens: Outcome<TokenFacts>): SampleLengths {
  if (!tokens.ok) return {}
  const { longest, mean, whole } = tokens.value
  return { usual: Math.max(1, mean), ...(whole ? { longest } : {}) }
}

/** Either what was asked for, or why there is none: a sentence for the user. */
export type Outcome<T> =
  { readonly ok: true; readonly value: T } | { readonly ok: false; readonly problem: string; readonly missing: boolean }

/**
 * What the services know of the world around one recipe. Everything is bounded and cached: answers come at once or, the first
 * time, when the disk was looked at.
 */
export interface Workspace {
  models(): Promise<readonly FoundModel[]>
  datasets(): Promise<readonly FoundDataset[]>
  checkpoints(outputDir: string): Promise<readonly FoundCheckpoint[]>
  devices(): Promise<readonly FoundDevice[]>
  model(name: string): Promise<Outcome<ModelFacts>>
  dataset(name: string): Promise<Outcome<DatasetFacts>>
  columns(name: string): Promise<readonly string[]>
  targetModules(model: string): Promise<readonly string[]>
  /** Whether a name is certainly a path, and not the id of a repository. */
  isPath(name: string): boolean
  /** What stands at a path, relative to the recipe. */
  kindOf(name: string): 'file' | 'folder' | undefined
  plan(recipe: Recipe, lengths?: SampleLengths): Promise<Outcome<RecipePlan>>
  tokens(recipe: Recipe): Promise<Outcome<TokenFacts>>
}

/** A world in which nothing is known: for recipes that stand in no folder. */
export const emptyWorkspace: Workspace = {
  models: () => Promise.resolve([]),
  datasets: () => Promise.resolve([]),
  checkpoints: () => Promise.resolve([]),
  devices: () => Promise.resolve([]),
  model: () => Promise.resolve({ ok: false, problem: 'the recipe is not saved in a folder yet', missing: false }),
  dataset: () => Promise.resolve({ ok: false, problem: 'the recipe is not saved in a folder yet', missing: false }),
  columns: () => Promise.resolve([]),
  targetModules: () => Promise.resolve([]),
  isPath: () => false,
  kindOf: () => undefined,
  plan: () => Promise.resolve({ ok: false, problem: 'the recipe is not saved in a folder yet', missing: false }),
  tokens: () => Promise.resolve({ ok: false, problem: 'the recipe is not saved in a folder yet', missing: false }),
}
