import { dropAdapter } from './axolotl.ts'
import { because, ignore, optimizer, readKeys, resume, scheduler, steps, to, warmup, type KeyTable, type Read } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, asNumber, isFalse, isFile, isTrue } from './values.ts'

/** Names of dataset_info.json stand for files of the same name in the data folder, by its convention. */
const datasetFiles = (value: unknown, folder: unknown): string[] => {
  const base = typeof folder === 'string' && folder !== '' && !folder.startsWith('REMOTE:') ? folder.replace(/\/+$/, '') : 'data'
  return asNames(value).map((name) => isFile(name) ? (name.startsWith('/') || name.startsWith('.') ? name : `${base}/${name}`) : `${base}/${name}.json`)
}

const dataset: Read = (draft, value, all) => {
  const names = asNames(value)
  if (names.length === 0) return
  // `owner/name` is a repository; anything else is looked up in the data folder.
  if (names.length === 1 && /^[\w.-]+\/[\w.-]+$/.test(names[0]!) && !isFile(names[0]!)) {
    draft.set('data.dataset', names[0])
    return
  }
  const files = datasetFiles(value, all.dataset_dir)
  draft.set('data.local_dataset', files.length === 1 ? files[0] : files)
  if (names.some((name) => !isFile(name))) draft.note('dataset', value, 'names of dataset_info.json: check that the files in data.local_dataset are the right ones')
}

const evalDataset: Read = (draft, value, all) => {
  const files = datasetFiles(value, all.dataset_dir)
  if (files.length > 0) draft.set('data.eval_dataset', files.length === 1 ? files[0] : files)
}

const tuning: Read = (draft, value) => {
  if (value === 'lora' || value === 'full') draft.set('training.training_type', value)
  else draft.note('finetuning_type', value, 'lora and full are available')
}

const quantisation: Read = (draft, value) => {
  const bits = asNumber(value)
  if (bits === 4) draft.set('training.load_in_4bit', true)
  else if (bits === 8) draft.set('training.load_in_8bit', true)
  else if (bits !== undefined) draft.note('quantization_bit', value, 'weights are kept in 4 or 8 bits, or as they are')
}

const targets: Read = (draft, value) => {
  const names = asNames(value)
  if (names.length === 1 && names[0] === 'all') draft.set('lora.target_modules', 'all-linear')
  else if (names.length > 0) draft.set('lora.target_modules', names)
}

const stage: Read = (draft, value) => {
  if (value === 'pt') draft.set('data.format_type', 'text')
  else if (value !== 'sft') draft.note('stage', value, 'only supervised fine-tuning is available')
}

const report: Read = (draft, value) => {
  for (const name of asNames(value)) {
    if (name === 'wandb' || name === 'all') draft.set('logging.enable_wandb', true)
    if (name === 'tensorboard' || name === 'all') draft.set('logging.enable_tensorboard', true)
    if (!['wandb', 'tensorboard', 'all', 'none'].includes(name)) draft.note('report_to', name, 'metrics are in the run directory')
  }
}

const distributed = because('one machine trains')
const asMade = because('the model is used as it was made')
const notHere = because('this kind of training is not available')

const table: KeyTable = {
  model_name_or_path: to('model.name'), model_revision: to('model.revision'), adapter_name_or_path: to('lora.init_adapter'),
  trust_remote_code: because('code from model repositories is never run')('trust_remote_code'), use_fast_tokenizer: ignore, cache_dir: ignore,
  stage, do_train: ignore, do_eval: ignore, do_predict: ignore, finetuning_type: tuning, quantization_bit: quantisation, quantization_method: ignore, double_quantization: ignore,
  lora_rank: to('lora.lora_r'), lora_alpha: to('lora.lora_alpha'), lora_dropout: to('lora.lora_dropout'), lora_target: targets, use_rslora: to('lora.use_rslora'), use_dora: to('lora.use_dora'),
  additional_target: (draft, value) => { if (asNames(value).length > 0) draft.set('lora.modules_to_save', asNames(value)) },
  pissa_init: (draft, value) => { if (isTrue(value)) draft.set('lora.init_lora_weights', 'pissa') }, pissa_iter: ignore, pissa_convert: ignore, create_new_adapter: ignore,
  loraplus_lr_ratio: because('LoRA+ is not available')('loraplus_lr_ratio'), use_galore: notHere('use_galore'), use_badam: notHere('use_badam'), use_apollo: notHere('use_apollo'),
  use_llama_pro: notHere('use_llama_pro'), freeze_trainable_layers: notHere('freeze_trainable_layers'), freeze_trainable_modules: notHere('freeze_trainable_modules'),
  pref_beta: notHere('pref_beta'), pref_loss: notHere('pref_loss'), reward_model: notHere('reward_model'),
  dataset, eval_dataset: evalDataset, dataset_dir: ignore, media_dir: ignore, template: because('the chat template of the model is used; data.chat_template takes another one')('template'),
  cutoff_len: to('training.max_seq_length'), max_samples: to('data.max_samples'), val_size: to('data.eval_split'), streaming: to('data.streaming'),
  packing: to('training.packing'), neat_packing: (draft, value) => { if (isTrue(value)) draft.set('training.packing', true) },
  train_on_prompt: ignore, mask_history: because('all answers of a conversation are trained')('mask_history'), overwrite_cache: ignore, preprocessing_num_workers: ignore,
  preprocessing_batch_size: ignore, dataloader_num_workers: ignore, tokenized_path: ignore, buffer_size: ignore, mix_strategy: ignore, interleave_probs: ignore, ignore_pad_token_for_loss: ignore,
  output_dir: to('training.output_dir'), run_name: to('training.run_name'), logging_steps: to('logging.logging_steps'), save_steps: steps('training.save_steps', 'save_steps'),
  save_total_limit: to('training.save_total_limit'), save_strategy: ignore, save_only_model: ignore, save_safetensors: ignore, plot_loss: ignore, overwrite_output_dir: ignore, report_to: report,
  logging_dir: to('logging.tensorboard_dir'), logging_strategy: ignore, include_num_input_tokens_seen: ignore, include_tokens_per_second: ignore,
  per_device_train_batch_size: to('training.batch_size'), per_device_eval_batch_size: to('training.per_device_eval_batch_size'),
  gradient_accumulation_steps: to('training.gradient_accumulation_steps'), learning_rate: to('training.learning_rate'), num_train_epochs: to('training.num_epochs'), max_steps: (draft, value) => {
    if ((asNumber(value) ?? 0) > 0) draft.set('training.max_steps', value)
  },
  lr_scheduler_type: scheduler('lr_scheduler_type'), warmup_ratio: to('training.warmup_ratio'), warmup_steps: warmup, optim: optimizer('optim'), weight_decay: to('training.weight_decay'),
  adam_beta1: to('training.adam_beta1'), adam_beta2: to('training.adam_beta2'), adam_epsilon: to('training.adam_epsilon'), max_grad_norm: to('training.max_grad_norm'), seed: to('training.random_seed'),
  data_seed: ignore, bf16: ignore, fp16: ignore, pure_bf16: ignore, tf32: ignore, compute_type: ignore, infer_dtype: ignore, upcast_layernorm: ignore, upcast_lmhead_output: ignore,
  ddp_timeout: ignore, ddp_find_unused_parameters: ignore, deepspeed: distributed('deepspeed'), fsdp: distributed('fsdp'), fsdp_config: distributed('fsdp_config'), ray_run_name: distributed('ray_run_name'),
  resume_from_checkpoint: resume, eval_strategy: ignore, evaluation_strategy: ignore, eval_steps: steps('training.eval_steps', 'eval_steps'), predict_with_generate: ignore, load_best_model_at_end: ignore,
  metric_for_best_model: ignore, greater_is_better: ignore, flash_attn: ignore, shift_attn: ignore, use_unsloth: ignore, use_unsloth_gc: ignore, enable_liger_kernel: ignore, use_cache: ignore,
  disable_gradient_checkpointing: (draft, value) => { if (isTrue(value)) draft.set('training.gradient_checkpointing', 'none') }, use_reentrant_gc: ignore,
  gradient_checkpointing: to('training.gradient_checkpointing'), rope_scaling: asMade('rope_scaling'), resize_vocab: asMade('resize_vocab'), new_special_tokens: asMade('new_special_tokens'),
  neftune_noise_alpha: because('NEFTune is not available')('neftune_noise_alpha'), push_to_hub: to('hub.push'), hub_model_id: to('hub.repo_id'), hub_private_repo: to('hub.private'), hub_strategy: ignore,
  export_dir: to('save.path'), export_size: ignore, export_device: ignore, export_legacy_format: ignore, freeze_vision_tower: ignore, freeze_multi_modal_projector: ignore, freeze_language_model: ignore,
  image_max_pixels: ignore, video_max_pixels: ignore, low_cpu_mem_usage: ignore, remove_unused_columns: ignore, group_by_length: ignore, enable_thinking: ignore,
}

/** A LLaMA-Factory file as a recipe, with its defaults where they differ from ours. */
export function readLlamaFactory(draft: RecipeDraft, all: Readonly<Record<string, unknown>>): void {
  readKeys(draft, all, table, 'no such setting here')
  draft.orElse('training.training_type', 'lora')
  draft.orElse('training.learning_rate', 5e-5)
  draft.orElse('training.batch_size', 8)
  draft.orElse('training.gradient_accumulation_steps', 1)
  draft.orElse('training.weight_decay', 0)
  if (!draft.has('training.warmup_steps') && !draft.has('training.warmup_ratio')) draft.set('training.warmup_steps', 0)
  if (draft.get('training.training_type') === 'full') dropAdapter(draft)
  else {
    draft.orElse('lora.lora_r', 8)
    draft.orElse('lora.lora_alpha', 2 * (asNumber(draft.get('lora.lora_r')) ?? 8))
    draft.orElse('lora.target_modules', 'all-linear')
  }
  if (draft.get('data.format_type') !== 'text' && !isTrue(all.train_on_prompt)) draft.set('training.train_on_completions', true)
  if (draft.has('data.eval_dataset')) draft.delete('data.eval_split')
  if (isFalse(all.do_train)) draft.note('do_train', all.do_train, 'a recipe always trains')
}
