import * as z from 'zod'
import { dataSection } from './dataSection.ts'
import { loraSection } from './loraSection.ts'
import { modelSection } from './modelSection.ts'
import { hubSection, inferenceSection, loggingSection, saveSection } from './outputSections.ts'
import { trainingSection } from './trainingSection.ts'
import { say, type Said } from './issue.ts'

/** The sections of a recipe in the order in which they are written. */
export const sections = {
  model: modelSection,
  data: dataSection,
  training: trainingSection,
  lora: loraSection,
  logging: loggingSection,
  save: saveSection,
  hub: hubSection,
  inference: inferenceSection,
} as const

export type SectionName = keyof typeof sections
export const sectionNames = Object.keys(sections) as SectionName[]

export const sectionDocs: Readonly<Record<SectionName, string>> = {
  model: 'The model to start from. `model: NAME` is short for `model: { name: NAME }`.',
  data: 'What to train and to evaluate on.',
  training: 'How to train.',
  lora: 'The adapter; used with `training_type: lora`.',
  logging: 'Where progress goes. The run directory always gets all of it.',
  save: 'What to save at the end, and where.',
  hub: 'Uploading to the Hugging Face Hub.',
  inference: 'Sampling settings that Unsloth Studio writes into its files. Training does not use them.',
}

/** Version of the recipe format. */
export const recipeVersion = 1

/**
 * The recipe after aliases are resolved (`canonicalRecipe`): types, ranges and defaults. Rules between keys are in
 * `checkRecipe`; `validateRecipe` does all of it.
 */
export const recipeSchema = z.strictObject({
  version: z.literal(recipeVersion).default(recipeVersion),
  model: modelSection,
  data: dataSection.prefault({}),
  training: trainingSection.prefault({}),
  lora: loraSection.prefault({}),
  logging: loggingSection.prefault({}),
  save: saveSection.prefault({}),
  hub: hubSection.prefault({}),
  inference: inferenceSection.prefault({}),
})

/** A recipe with every default applied and every spelling normalised. */
export type Recipe = z.output<typeof recipeSchema>

/** Keys that hold secrets: understood, dropped at once, kept nowhere. */
export const secretKeys: ReadonlySet<string> = new Set([
  'hf_token',
  'wandb_token',
  'hub_token',
  'token',
  'wandb_api_key',
  'api_key',
])

/** Where a dropped secret should stand instead. */
export function secretHint(key: string): Said {
  return key.startsWith('wandb') ? say`set WANDB_API_KEY in the environment` : say`set HF_TOKEN in the environment`
}
