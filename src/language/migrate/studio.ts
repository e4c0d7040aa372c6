import { recipeFields } from '#shared/recipe.ts'
import { dropAdapter } from './axolotl.ts'
import { because, ignore, to, type KeyTable } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, isEmpty, isFalse } from './values.ts'

const table: KeyTable = {
  model_name: to('model.name'), hf_dataset: to('data.dataset'), local_datasets: (draft, value) => {
    const files = asNames(value)
    if (files.length > 0) draft.set('data.local_dataset', files.length === 1 ? files[0] : files)
  },
  training_type: (draft, value) => draft.set('training.training_type', /full/i.test(String(value)) ? 'full' : 'lora'),
  use_lora: (draft, value) => { if (isFalse(value)) draft.set('training.training_type', 'full') },
  custom_format_mapping: because('columns are found by themselves; data.text_column names the one of plain text')('custom_format_mapping'),
  is_dataset_image: because('only text is trained')('is_dataset_image'), is_dataset_audio: because('only text is trained')('is_dataset_audio'),
  train_on_completions: to('training.train_on_completions'), eval_split: to('data.eval_split'), max_steps: to('training.max_steps'), gpu_ids: ignore,
  trust_remote_code: because('code from model repositories is never run')('trust_remote_code'), seed: to('training.random_seed'), random_state: to('training.random_seed'),
  target_modules: (draft, value) => { if (asNames(value).length > 0) draft.set('lora.target_modules', asNames(value)) },
  dataset_slice_start: because('data.max_samples takes the first rows')('dataset_slice_start'), dataset_slice_end: because('data.max_samples takes the first rows')('dataset_slice_end'),
}

/** A flat file with the keys of the Python tools: a run request of Studio, or settings that were never put into sections. */
export function readStudio(draft: RecipeDraft, all: Readonly<Record<string, unknown>>): void {
  for (const [key, value] of Object.entries(all)) {
    if (isEmpty(value) || key === 'version') continue
    const read = Object.hasOwn(table, key) ? table[key] : undefined
    const field = recipeFields.find((candidate) => candidate.key === key) ?? recipeFields.find(({ meta }) => meta.aliases?.includes(key))
    if (read !== undefined) read(draft, value, all)
    else if (field !== undefined) draft.set(field.path, value)
    else if (!isFalse(value)) draft.note(key, value, 'no such setting here')
  }
  if (draft.has('data.local_dataset')) draft.delete('data.dataset')
  if (draft.get('training.training_type') === 'full') dropAdapter(draft)
}
