import { dropAdapter } from './axolotl.ts'
import { keyTable, optimizer, readKeys, resume, scheduler, steps, warmup, type Read } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, asNumber, isFalse, isFile, isTrue } from './values.ts'

/** Names of dataset_info.json stand for files of the same name in the data folder, by its convention. */
const datasetFiles = (value: unknown, folder: unknown): string[] => {
  const base = typeof folder === 'string' && folder !== '' && !folder.startsWith('REMOTE:') ? folder.replace(/\/+$/, '') : 'data'
  return asNames(value).map((name) =>
    isFile(name) ? (name.startsWith('/') || name.startsWith('.') ? name : `${base}/${name}`) : `${base}/${name}.json`,
  )
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
  if (names.some((name) => !isFile(name)))
    draft.note('dataset', value, 'names of dataset_info.json: check that the files in data.local_dataset are the right ones')
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

const table = keyTable({
  renamed: {
    model_name_or_path: 'model.name',
    model_revision: 'model.revision',
    adapter_name_or_path: 'lora.init_adapter',
    lora_rank: 'lora.lora_r',
    lora_alpha: 'lora.lora_alpha',
    lora_dropout: 'lora.lora_dropout',
    use_rslora: 'lora.use_rslora',
    use_dora: 'lora.use_dora',
    cutoff_len: 'training.max_seq_length',
    max_samples: 'data.max_samples',
    val_size: 'data.eval_split',
    streaming: 'data.streaming',
    packing: 'training.packing',
    output_dir: 'training.output_dir',
    run_name: 'training.run_name',
    logging_steps: 'logging.logging_steps',
    save_total_limit: 'training.save_total_limit',
    logging_dir: 'logging.tensorboard_dir',
    per_device_train_batch_size: 'training.batch_size',
    per_device_eval_batch_size: 'training.per_device_eval_batch_size',
    gradient_accumulation_steps: 'training.gradient_accumulation_steps',
    learning_rate: 'training.learning_rate',
    num_train_epochs: 'training.num_epochs',
    warmup_ratio: 'training.warmup_ratio',
    weight_decay: 'training.weight_decay',
    adam_beta1: 'training.adam_beta1',
    adam_beta2: 'training.adam_beta2',
    adam_epsilon: 'training.adam_epsilon',
    max_grad_norm: 'training.max_grad_norm',
    seed: 'training.random_seed',
    gradient_checkpointing: 'training.gradient_checkpointing',
    push_to_hub: 'hub.push',
    hub_model_id: 'hub.repo_id',
    hub_private_repo: 'hub.private',
    export_dir: 'save.path',
  },
  read: {
    stage,
    finetuning_type: tuning,
    quantization_bit: quantisation,
    lora_target: targets,
    dataset,
    eval_dataset: evalDataset,
    save_steps: steps('training.save_steps', 'save_steps'),
    report_to: report,
    lr_scheduler_type: scheduler('lr_scheduler_type'),
    warmup_steps: warmup,
    optim: optimizer('optim'),
    resume_from_checkpoint: resume,
    eval_steps: steps('training.eval_steps', 'eval_steps'),
    additional_target: (draft, value) =>
      draft.set('lora.modules_to_save', asNames(value).length > 0 ? asNames(value) : undefined),
    pissa_init: (draft, value) => draft.set('lora.init_lora_weights', isTrue(value) ? 'pissa' : undefined),
    neat_packing: (draft, value) => draft.set('training.packing', isTrue(value) ? true : undefined),
    max_steps: (draft, value) => draft.set('training.max_steps', (asNumber(value) ?? 0) > 0 ? value : undefined),
    disable_gradient_checkpointing: (draft, value) =>
      draft.set('training.gradient_checkpointing', isTrue(value) ? 'none' : undefined),
  },
  refused: {
    'code from model repositories is never run': ['trust_remote_code'],
    'LoRA+ is not available': ['loraplus_lr_ratio'],
    'this kind of training is not available': [
      'use_galore',
      'use_badam',
      'use_apollo',
      'use_llama_pro',
      'freeze_trainable_layers',
      'freeze_trainable_modules',
      'pref_beta',
      'pref_loss',
      'reward_model',
    ],
    'the chat template of the model is used; data.chat_template takes another one': ['template'],
    'all answers of a conversation are trained': ['mask_history'],
    'one machine trains': ['deepspeed', 'fsdp', 'fsdp_config', 'ray_run_name'],
    'the model is used as it was made': ['rope_scaling', 'resize_vocab', 'new_special_tokens'],
    'NEFTune is not available': ['neftune_noise_alpha'],
  },
  ignored: [
    'use_fast_tokenizer',
    'cache_dir',
    'do_train',
    'do_eval',
    'do_predict',
    'quantization_method',
    'double_quantization',
    'pissa_iter',
    'pissa_convert',
    'create_new_adapter',
    'dataset_dir',
    'media_dir',
    'train_on_prompt',
    'overwrite_cache',
    'preprocessing_num_workers',
    'preprocessing_batch_size',
    'dataloader_num_workers',
    'tokenized_path',
    'buffer_size',
    'mix_strategy',
    'interleave_probs',
    'ignore_pad_token_for_loss',
    'save_strategy',
    'save_only_model',
    'save_safetensors',
    'plot_loss',
    'overwrite_output_dir',
    'logging_strategy',
    'include_num_input_tokens_seen',
    'include_tokens_per_second',
    'data_seed',
    'bf16',
    'fp16',
    'pure_bf16',
    'tf32',
    'compute_type',
    'infer_dtype',
    'upcast_layernorm',
    'upcast_lmhead_output',
    'ddp_timeout',
    'ddp_find_unused_parameters',
    'eval_strategy',
    'evaluation_strategy',
    'predict_with_generate',
    'load_best_model_at_end',
    'metric_for_best_model',
    'greater_is_better',
    'flash_attn',
    'shift_attn',
    'use_unsloth',
    'use_unsloth_gc',
    'enable_liger_kernel',
    'use_cache',
    'use_reentrant_gc',
    'hub_strategy',
    'export_size',
    'export_device',
    'export_legacy_format',
    'freeze_vision_tower',
    'freeze_multi_modal_projector',
    'freeze_language_model',
    'image_max_pixels',
    'video_max_pixels',
    'low_cpu_mem_usage',
    'remove_unused_columns',
    'group_by_length',
    'enable_thinking',
  ],
})

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
