import { parseDocument } from '../../../engine/recipe/recipeDocument.ts'
import { isSection } from '#shared/recipe.ts'

/** Programs whose files are turned into recipes. */
export type ForeignKind = 'axolotl' | 'llama-factory' | 'studio'

export const foreignName: Readonly<Record<ForeignKind, string>> = {
  axolotl: 'Axolotl',
  'llama-factory': 'LLaMA-Factory',
  studio: 'Unsloth Studio (a flat run request)',
}

/** Keys that only the files of one program have, or that are telling together. */
const marks: Readonly<Record<ForeignKind, readonly string[]>> = {
  axolotl: [
    'base_model',
    'base_model_config',
    'datasets',
    'sequence_len',
    'micro_batch_size',
    'val_set_size',
    'dataset_prepared_path',
    'adapter',
    'lora_target_linear',
    'lora_target_modules',
    'sample_packing',
    'pad_to_sequence_len',
    'train_on_inputs',
    'flash_attention',
    'special_tokens',
    'saves_per_epoch',
    'evals_per_epoch',
    'model_type',
    'tokenizer_type',
    'strict',
    'chat_template',
    'lora_model_dir',
    'deepspeed',
    'fsdp',
  ],
  'llama-factory': [
    'model_name_or_path',
    'stage',
    'finetuning_type',
    'template',
    'cutoff_len',
    'dataset',
    'dataset_dir',
    'lora_target',
    'do_train',
    'lora_rank',
    'preprocessing_num_workers',
    'overwrite_cache',
    'plot_loss',
    'overwrite_output_dir',
    'val_size',
    'quantization_bit',
    'finetuning_type',
    'report_to',
    'ddp_timeout',
    'per_device_train_batch_size',
    'num_train_epochs',
  ],
  studio: [
    'model_name',
    'project_name',
    'hf_dataset',
    'local_datasets',
    'local_dataset',
    'train_split',
    'eval_split',
    'format_type',
    'training_type',
    'max_seq_length',
    'lora_r',
    'lora_alpha',
    'is_dataset_image',
    'custom_format_mapping',
    'use_lora',
    'num_epochs',
    'batch_size',
    'dataset',
  ],
}

/** One of these has to be there: they name the model. */
const owner: Readonly<Record<ForeignKind, readonly string[]>> = {
  axolotl: ['base_model'],
  'llama-factory': ['model_name_or_path'],
  studio: ['model_name'],
}

const isMapping = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** The top-level keys of a text that parses, with their values. */
export function topLevel(text: string): Readonly<Record<string, unknown>> | undefined {
  const { value, problems } = parseDocument(text.replace(/^\ufeff/, ''), { json: /^\s*\{/.test(text) })
  return isMapping(value) && !problems.some(({ code }) => code === 'syntax') ? value : undefined
}

/** Which other program a text was written for; undefined for recipes and for what cannot be told. */
export function foreignKind(text: string): ForeignKind | undefined {
  if (!/^\s*["']?(?:base_model|model_name_or_path|model_name)["']?\s*:/m.test(text)) return undefined
  const top = topLevel(text)
  if (top === undefined) return undefined
  const keys = Object.keys(top)
  // A recipe with one misplaced key is still a recipe.
  if (keys.some((key) => isSection(key) && (key === 'model' ? true : isMapping(top[key])))) return undefined
  const scores = (Object.keys(marks) as ForeignKind[])
    .filter((kind) => owner[kind].some((key) => keys.includes(key)))
    .map((kind) => ({ kind, score: marks[kind].filter((key) => keys.includes(key)).length }))
    .filter(({ score }) => score >= 2)
    .sort((a, b) => b.score - a.score)
  return scores[0]?.kind
}
