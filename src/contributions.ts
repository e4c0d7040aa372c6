/**
 * Every name that the extension contributes to the editor: commands, settings, context keys, views. package.json repeats them;
 * test/unit/extension/contributions.test.ts holds the two against each other. Pure, so that tests and webviews can read it.
 */

/** Arguments of each command. A run is named by its directory; menus of trees pass their node instead. */
export interface CommandSignatures {
  /** Starts the recipe (a path), the one in the editor, or asks what to fine-tune. Resolves to the run directory. */
  'unsloth.fineTune': (recipe?: unknown) => Promise<string | undefined>
  /** Asks for model, data set and method, writes a recipe and opens it. Resolves to its path. */
  'unsloth.newRecipe': (start?: unknown) => Promise<string | undefined>
  'unsloth.dryRun': (recipe?: unknown) => Promise<void>
  /** A recipe, a data file or a row of the tree of data sets. */
  'unsloth.previewData': (data?: unknown) => Promise<void>
  /** `plan` is a RecipePlan, as the lens with the memory figure passes it; without it the engine plans. */
  'unsloth.showMemoryPlan': (recipe?: unknown, plan?: unknown) => Promise<void>
  'unsloth.stopRun': (run?: unknown, how?: 'now' | 'save') => Promise<void>
  'unsloth.pauseRun': (run?: unknown) => Promise<void>
  'unsloth.continueRun': (run?: unknown) => Promise<void>
  /** `at` names the run where `run` is a recipe: the lens of a recipe passes both. */
  'unsloth.resumeRun': (run?: unknown, at?: unknown) => Promise<string | undefined>
  'unsloth.openTrainingPanel': (run?: unknown) => Promise<void>
  'unsloth.compareRuns': (run?: unknown, selected?: unknown) => Promise<void>
  'unsloth.merge': (source?: unknown) => Promise<string | undefined>
  'unsloth.generate': (source?: unknown, prompt?: string) => Promise<void>
  'unsloth.inspectModel': (model?: unknown) => Promise<void>
  'unsloth.verify': (folder?: unknown) => Promise<void>
  'unsloth.doctor': () => Promise<void>
  'unsloth.selectDevice': () => Promise<void>
  /** Measures how fast this machine trains, for the time that recipes tell. */
  'unsloth.measureSpeed': () => Promise<void>
  /** Writes a file of another program as a recipe; resolves to its path. */
  'unsloth.migrateRecipe': (file?: unknown) => Promise<string | undefined>
  /** Asks for the Hugging Face token and keeps it as a secret. */
  'unsloth.setHubToken': () => Promise<void>
  'unsloth.showEngineLog': () => Promise<void>
  'unsloth.restartEngine': () => Promise<void>
  'unsloth.openStarter': () => Promise<string | undefined>
  'unsloth.openWalkthrough': () => Promise<void>
  'unsloth.refresh': () => Promise<void>
  'unsloth.addDataset': () => Promise<void>
  'unsloth.addModelFolder': () => Promise<void>
  'unsloth.openRunRecipe': (run?: unknown) => Promise<void>
  'unsloth.openRunLog': (run?: unknown) => Promise<void>
  'unsloth.revealRun': (run?: unknown) => Promise<void>
  'unsloth.deleteRun': (run?: unknown) => Promise<void>
  'unsloth.openDataset': (dataset?: unknown) => Promise<void>
  'unsloth.copyPath': (node?: unknown) => Promise<void>
}
export type CommandId = keyof CommandSignatures

// Written this way so that a command cannot be forgotten.
const all: Readonly<Record<CommandId, true>> = {
  'unsloth.fineTune': true,
  'unsloth.newRecipe': true,
  'unsloth.dryRun': true,
  'unsloth.previewData': true,
  'unsloth.showMemoryPlan': true,
  'unsloth.stopRun': true,
  'unsloth.pauseRun': true,
  'unsloth.continueRun': true,
  'unsloth.resumeRun': true,
  'unsloth.openTrainingPanel': true,
  'unsloth.compareRuns': true,
  'unsloth.merge': true,
  'unsloth.generate': true,
  'unsloth.inspectModel': true,
  'unsloth.verify': true,
  'unsloth.doctor': true,
  'unsloth.selectDevice': true,
  'unsloth.measureSpeed': true,
  'unsloth.migrateRecipe': true,
  'unsloth.setHubToken': true,
  'unsloth.showEngineLog': true,
  'unsloth.restartEngine': true,
  'unsloth.openStarter': true,
  'unsloth.openWalkthrough': true,
  'unsloth.refresh': true,
  'unsloth.addDataset': true,
  'unsloth.addModelFolder': true,
  'unsloth.openRunRecipe': true,
  'unsloth.openRunLog': true,
  'unsloth.revealRun': true,
  'unsloth.deleteRun': true,
  'unsloth.openDataset': true,
  'unsloth.copyPath': true,
}
export const commandIds = Object.keys(all) as CommandId[]

/** Settings by their full name, with the type of their value. */
export interface Settings {
  /** Where to compute when the recipe says `auto`. */
  'unsloth.device': 'auto' | 'cpu' | 'cuda' | `cuda:${number}`
  /** Threads when the recipe does not say; 0 is one for each physical core. */
  'unsloth.threads': number
  /** What opens when a run starts. */
  'unsloth.openPanelOnStart': boolean
  /** Whether the end of a run is told. */
  'unsloth.notifications': 'all' | 'problems' | 'none'
  /** Further folders to list models of. */
  'unsloth.modelFolders': string[]
  /** Further folders to list runs of. */
  'unsloth.runFolders': string[]
  /** Whether models of the Hugging Face cache are listed. */
  'unsloth.showHubCache': boolean
  /** `unsloth` in integrated terminals. */
  'unsloth.terminalCommand': boolean
  /** Another engine's start script. */
  'unsloth.engine.path': string
}
export type SettingName = keyof Settings

export const settingDefaults: Readonly<Settings> = {
  'unsloth.device': 'auto',
  'unsloth.threads': 0,
  'unsloth.openPanelOnStart': true,
  'unsloth.notifications': 'all',
  'unsloth.modelFolders': [],
  'unsloth.runFolders': [],
  'unsloth.showHubCache': true,
  'unsloth.terminalCommand': true,
  'unsloth.engine.path': '',
}

/** Settings that a workspace nobody has vouched for may not set: they name programs. */
export const restrictedSettings: readonly SettingName[] = ['unsloth.engine.path']

/** Keys of `when` clauses. */
export interface ContextKeys {
  /** The engine may run here: the workspace is trusted and this platform has an addon. */
  'unsloth.canRun': boolean
  /** Runs that a process works on. */
  'unsloth.liveRuns': number
  'unsloth.hasRuns': boolean
  'unsloth.hasDatasets': boolean
  /** Set while the step of the walkthrough has been done. */
  'unsloth.hasFinishedRun': boolean
}
export type ContextKey = keyof ContextKeys
const contexts: Readonly<Record<ContextKey, true>> = {
  'unsloth.canRun': true,
  'unsloth.liveRuns': true,
  'unsloth.hasRuns': true,
  'unsloth.hasDatasets': true,
  'unsloth.hasFinishedRun': true,
}
export const contextKeys = Object.keys(contexts) as ContextKey[]

export const viewContainer = 'unsloth'
export const views = { models: 'unsloth.models', datasets: 'unsloth.datasets', runs: 'unsloth.runs' } as const
export const languageId = 'finetune-yaml'
export const recipeGlob = '**/{finetune.yaml,finetune.yml,*.finetune.yaml}'
export const taskType = 'unsloth'
export const problemMatcher = '$unsloth'
export const walkthrough = 'getStarted'
/** Schemes of documents that the extension writes and nobody edits. */
export const reportScheme = 'unsloth-report'

/** What a tree item is, for the `when` clauses of its menu: words in `viewItem`. */
export const nodeKinds = [
  'model',
  'adapter',
  'gguf',
  'dataset',
  'run',
  'live',
  'paused',
  'resumable',
  'ended',
  'finished',
  'checkpoint',
  'output',
] as const
export type NodeKind = (typeof nodeKinds)[number]

export const contextValue = (...kinds: readonly NodeKind[]): string => kinds.join(' ')
