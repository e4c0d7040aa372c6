import { recipeFields } from '#shared/recipe.ts'
import { dropAdapter } from './axolotl.ts'
import { keyTable, type Read } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, isEmpty, isFalse } from './values.ts'

const files: Read = (draft, value) => {
  const names = asNames(value)
  if (names.length > 0) draft.set('data.local_dataset', names.length === 1 ? names[0] : names)
}

const table = keyTable({
  renamed: {
    model_name: 'model.name',
    hf_dataset: 'data.dataset',
    train_on_completions: 'training.train_on_completions',
    eval_split: 'data.eval_split',
    max_steps: 'training.max_steps',
    seed: 'training.random_seed',
    random_state: 'training.random_seed',
  },
  read: {
    local_datasets: files,
    training_type: (draft, value) => draft.set('training.training_type', /full/i.test(String(value)) ? 'full' : 'lora'),
    use_lora: (draft, value) => draft.set('training.training_type', isFalse(value) ? 'full' : 'lora'),
    target_modules: (draft, value) => draft.set('lora.target_modules', asNames(value).length > 0 ? asNames(value) : undefined),
  },
  refused: {
    'columns are found by themselves; data.text_column names the one of plain text': ['custom_format_mapping'],
    'only text is trained': ['is_dataset_image', 'is_dataset_audio'],
    'code from model repositories is never run': ['trust_remote_code'],
    'data.max_samples takes the first rows': ['dataset_slice_start', 'dataset_slice_end'],
  },
  ignored: ['gpu_ids'],
})

/** A flat file with the keys of the Python tools: a run request of Studio, or settings that were never put into sections. */
export function readStudio(draft: RecipeDraft, all: Readonly<Record<string, unknown>>): void {
  for (const [key, value] of Object.entries(all)) {
    if (isEmpty(value) || key === 'version') continue
    const read = Object.hasOwn(table, key) ? table[key] : undefined
    const field =
      recipeFields.find((candidate) => candidate.key === key) ?? recipeFields.find(({ meta }) => meta.aliases?.includes(key))
    if (read !== undefined) read(draft, value, all)
    else if (field !== undefined) draft.set(field.path, value)
    else if (!isFalse(value)) draft.note(key, value, 'no such setting here')
  }
  if (draft.has('data.local_dataset')) draft.delete('data.dataset')
  if (draft.get('training.training_type') === 'full') dropAdapter(draft)
}
