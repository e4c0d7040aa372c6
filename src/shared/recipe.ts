/**
 * The recipe: what a fine-tuning run is made of. One schema gives the type, validation, JSON Schema, docs, and what
 * completion, hover and the command line know of each key.
 */
export {
  recipeSchema,
  recipeVersion,
  sectionDocs,
  sectionNames,
  secretKeys,
  type Recipe,
  type SectionName,
} from './recipe/schema.ts'
export { fieldAt, findField, isSection, recipeFields, spellings, type RecipeField } from './recipe/fields.ts'
export { valueEntries } from './recipe/field.ts'
export type { Availability, FieldKind, FieldMeta, PathRole } from './recipe/field.ts'
export { say, translated, type PathPart, type RecipeIssue, type Said } from './recipe/issue.ts'
export type { RecipeOverride } from './recipe/canonical.ts'
export { validateRecipe, type ValidateOptions, type Validation } from './recipe/validate.ts'
export { checkRecipe, expectation, rangeText, unsupportedSettings } from './recipe/checks.ts'
export {
  effectiveBatch,
  evalInterval,
  hasEvalSet,
  loraScale,
  parseByteSize,
  schedulerCycles,
  stepsPerEpoch,
  targetModules,
  moduleChoice,
  totalSteps,
  warmupSteps,
} from './recipe/derived.ts'
export { closest, editDistance } from './recipe/suggest.ts'
export { recipeJsonSchema } from './recipe/jsonSchema.ts'
export { recipeDocs } from './recipe/docs.ts'
export { defaultTargetModules } from './recipe/loraSection.ts'
