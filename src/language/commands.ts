/**
 * Commands behind code lenses and hints. The extension registers them; the arguments are plain JSON.
 * The first argument of each is the URI of the recipe.
 */
export const lensCommands = {
  /** (recipe: string) */
  fineTune: 'unsloth.fineTune',
  /** (recipe: string): the plan only */
  dryRun: 'unsloth.dryRun',
  /** (recipe: string): rendered rows with what is trained of them */
  previewData: 'unsloth.previewData',
  /** (recipe: string, plan: RecipePlan): where the memory goes */
  showMemoryPlan: 'unsloth.showMemoryPlan',
  /** (recipe: string, at: { run: string, checkpoint: string, step: number }): paths are absolute */
  resumeRun: 'unsloth.resumeRun',
} as const

/** The language of recipes in the editor. */
export const languageId = 'finetune-yaml'

/** Messages of the client to the server besides the protocol's own. */
export const serverMessages = {
  /** Notification { devices: FoundDevice[] | null }: what a running engine says; null when it stopped. */
  devices: 'unsloth/devices',
  /** Notification {}: runs or checkpoints changed, so lenses are asked for again. */
  runsChanged: 'unsloth/runsChanged',
  /** Request { text: string } → { kind, text, notes } | null: another program's file as a recipe. */
  migrate: 'unsloth/migrate',
} as const
