import { because, ignore, optimizer, readKeys, resume, scheduler, steps, to, warmup, type KeyTable, type Read } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, asNumber, isEmpty, isFalse, isFile, isMapping, isTrue } from './values.ts'

/** Types of Axolotl's data sets, by the word before a dot or colon. */
const formats: Readonly<Record<string, string>> = {
  alpaca: 'alpaca', alpaca_chat: 'alpaca', alpaca_w_system: 'alpaca', completion: 'text', pretrain: 'text', chat_template: 'auto', sharegpt: 'sharegpt',
  gpteacher: 'alpaca', oasst: 'auto',
}

const datasets: Read = (draft, value) => {
  const entries = (Array.isArray(value) ? value : [value]) as unknown[]
  const files: string[] = []
  const hub: string[] = []
  for (const entry of entries) {
    if (!isMapping(entry)) continue
    const { path, type, data_files: data, ds_type: kind, split, name, field, shards, conversation } = entry
    const own = asNames(data)
    const local = typeof path === 'string' && (isFile(path) || (kind !== undefined && own.length === 0))
    if (own.length > 0 && (typeof path !== 'string' || isFile(path) || kind !== undefined)) files.push(...own)
    else if (typeof path === 'string') (local ? files : hub).push(path)
    readType(draft, type)
    if (typeof split === 'string') draft.orElse('data.split', split)
    if (typeof name === 'string') draft.orElse('data.subset', name)
    if (typeof field === 'string') draft.orElse('data.text_column', field)
    if (shards !== undefined) draft.note('datasets.shards', shards, 'use data.max_samples to take fewer rows')
    if (conversation !== undefined) draft.note('datasets.conversation', conversation, 'the chat template of the model is used')
    for (const key of ['field_messages', 'message_property_mappings', 'message_field_role', 'message_field_content', 'roles', 'roles_to_train', 'train_on_eos']) {
      if (!isEmpty(entry[key])) draft.note(`datasets.${key}`, entry[key], 'columns of conversations are found by themselves')
    }
  }
  if (files.length > 0) {
    draft.set('data.local_dataset', files.length === 1 ? files[0] : files)
    for (const id of hub) draft.note('datasets', id, 'files and a data set of the Hub cannot be mixed')
  } else if (hub.length > 0) {
    draft.set('data.dataset', hub[0])
    for (const id of hub.slice(1)) draft.note('datasets', id, 'one data set of the Hub at a time')
  }
}

function readType(draft: RecipeDraft, type: unknown): void {
  if (typeof type !== 'string') {
    if (!isEmpty(type)) draft.note('datasets.type', type, 'a prompt of its own; write the prompt and the answer into the columns prompt and completion')
    return
  }
  const format = formats[type.split(/[.:]/)[0]!]
  if (format === undefined) draft.note('datasets.type', type, 'the format is found by the columns')
  else if (format !== 'auto') draft.orElse('data.format_type', format)
}

const testDatasets: Read = (draft, value) => {
  const entries = Array.isArray(value) ? value as unknown[] : []
  const files = entries.flatMap((entry) => isMapping(entry) ? [...asNames(entry.data_files), ...(typeof entry.path === 'string' && isFile(entry.path) ? [entry.path] : [])] : [])
  if (files.length > 0) draft.set('data.eval_dataset', files.length === 1 ? files[0] : files)
  else if (entries.length > 0) draft.note('test_datasets', value, 'give files in data.eval_dataset')
}

const adapter: Read = (draft, value, all) => {
  const kind = typeof value === 'string' ? value.toLowerCase() : ''
  if (kind === 'lora' || kind === 'qlora') {
    draft.set('training.training_type', 'lora')
    if (kind === 'qlora' && !isFalse(all.load_in_4bit)) draft.set('training.load_in_4bit', true)
  } else if (kind === '' || kind === 'none') draft.set('training.training_type', 'full')
  else draft.note('adapter', value, 'only LoRA adapters are available')
}

const targets: Read = (draft, value, all) => {
  const names = asNames(value)
  if (names.length > 0 && !isTrue(all.lora_target_linear)) draft.set('lora.target_modules', names)
}

const perEpoch = (path: 'eval' | 'save'): Read => (draft, value, all) => {
  const count = asNumber(value)
  if (count === undefined || count <= 0) return
  const epochs = asNumber(all.num_epochs) ?? 1
  if (path === 'eval') draft.set('training.eval_steps', Number((1 / (count * Math.max(epochs, 1 / count + 1e-6))).toPrecision(3)))
  else if (count * epochs > 1) draft.note('saves_per_epoch', value, 'give a number of steps in training.save_steps')
}

const attention = because('attention is exact and fused in any case')
const distributed = because('one machine trains')
const kernels = because('fused kernels are always used')

const table: KeyTable = {
  base_model: to('model.name'), base_model_config: ignore, base_model_ignore_patterns: ignore, model_type: ignore, tokenizer_type: ignore,
  tokenizer_config: ignore, processor_type: ignore, is_llama_derived_model: ignore, is_mistral_derived_model: ignore, is_falcon_derived_model: ignore,
  strict: ignore, tokenizer_use_fast: ignore, tokenizer_legacy: ignore, save_safetensors: ignore, revision_of_model: to('model.revision'),
  trust_remote_code: because('code from model repositories is never run')('trust_remote_code'),
  load_in_8bit: to('training.load_in_8bit'), load_in_4bit: to('training.load_in_4bit'), adapter, lora_model_dir: to('lora.init_adapter'),
  lora_r: to('lora.lora_r'), lora_alpha: to('lora.lora_alpha'), lora_dropout: to('lora.lora_dropout'), lora_target_modules: targets,
  lora_target_linear: (draft, value) => { if (isTrue(value)) draft.set('lora.target_modules', 'all-linear') },
  lora_modules_to_save: (draft, value) => { if (!isEmpty(value)) draft.set('lora.modules_to_save', asNames(value)) },
  lora_fan_in_fan_out: ignore, peft_use_rslora: to('lora.use_rslora'), peft_use_dora: to('lora.use_dora'), peft_layers_to_transform: to('lora.layers_to_transform'),
  peft_init_lora_weights: to('lora.init_lora_weights'),
  datasets, test_datasets: testDatasets, val_set_size: to('data.eval_split'), dataset_prepared_path: ignore, dataset_processes: ignore, dataset_keep_in_memory: ignore,
  dataloader_num_workers: ignore, dataloader_prefetch_factor: ignore, dataloader_pin_memory: ignore,
  shuffle_merged_datasets: to('data.shuffle'), chat_template_jinja: to('data.chat_template'),
  chat_template: (draft, value) => {
    if (typeof value === 'string' && value !== 'tokenizer_default') draft.note('chat_template', value, 'the chat template of the model is used; data.chat_template takes another one')
  },
  sequence_len: to('training.max_seq_length'), sample_packing: to('training.packing'), eval_sample_packing: ignore, pad_to_sequence_len: ignore,
  sample_packing_eff_est: ignore, total_num_tokens: ignore, group_by_length: because('padding is never computed, so there is nothing to gain')('group_by_length'),
  micro_batch_size: to('training.batch_size'), eval_batch_size: to('training.per_device_eval_batch_size'), gradient_accumulation_steps: to('training.gradient_accumulation_steps'),
  num_epochs: to('training.num_epochs'), max_steps: to('training.max_steps'), learning_rate: to('training.learning_rate'), lr_scheduler: scheduler('lr_scheduler'),
  embedding_lr: to('training.embedding_learning_rate'),
  lr_scheduler_kwargs: (draft, value) => { if (isMapping(value)) { draft.set('training.num_cycles', value.num_cycles); draft.set('training.power', value.power) } },
  warmup_steps: warmup, warmup_ratio: to('training.warmup_ratio'), optimizer: optimizer('optimizer'), optim_args: because('see the adam_ keys')('optim_args'),
  weight_decay: to('training.weight_decay'), adam_beta1: to('training.adam_beta1'), adam_beta2: to('training.adam_beta2'), adam_epsilon: to('training.adam_epsilon'),
  max_grad_norm: to('training.max_grad_norm'), seed: to('training.random_seed'), gradient_checkpointing: to('training.gradient_checkpointing'),
  gradient_checkpointing_kwargs: ignore, train_on_inputs: ignore,
  logging_steps: to('logging.logging_steps'), eval_steps: steps('training.eval_steps', 'eval_steps'), save_steps: steps('training.save_steps', 'save_steps'),
  evals_per_epoch: perEpoch('eval'), saves_per_epoch: perEpoch('save'), save_total_limit: to('training.save_total_limit'), eval_strategy: ignore, evaluation_strategy: ignore,
  save_strategy: ignore, output_dir: to('training.output_dir'), resume_from_checkpoint: resume,
  auto_resume_from_checkpoints: (draft, value) => { if (isTrue(value)) draft.note('auto_resume_from_checkpoints', value, 'resume with the command Resume Run, or training.resume_from: latest') },
  hub_model_id: to('hub.repo_id'), hub_strategy: ignore, push_dataset_to_hub: ignore, hf_use_auth_token: ignore,
  wandb_project: (draft, value) => { if (!isEmpty(value)) { draft.set('logging.enable_wandb', true); draft.set('logging.wandb_project', value) } },
  wandb_name: to('training.run_name'), wandb_entity: ignore, wandb_watch: ignore, wandb_run_id: ignore, wandb_log_model: ignore, wandb_mode: ignore,
  use_tensorboard: to('logging.enable_tensorboard'), use_wandb: to('logging.enable_wandb'),
  bf16: ignore, fp16: ignore, bfloat16: ignore, float16: ignore, tf32: ignore, torch_dtype: to('model.dtype'), torch_compile: ignore, bf16_full_eval: ignore,
  flash_attention: ignore, xformers_attention: ignore, sdp_attention: ignore, eager_attention: ignore, s2_attention: attention('s2_attention'),
  flash_attn_cross_entropy: ignore, flash_attn_rms_norm: ignore, flash_attn_fuse_qkv: ignore, flash_attn_fuse_mlp: ignore, flex_attention: ignore,
  lora_mlp_kernel: ignore, lora_qkv_kernel: ignore, lora_o_kernel: ignore, plugins: kernels('plugins'), liger_rope: ignore, liger_rms_norm: ignore,
  liger_glu_activation: ignore, liger_layer_norm: ignore, liger_fused_linear_cross_entropy: ignore, cut_cross_entropy: ignore,
  deepspeed: distributed('deepspeed'), fsdp: distributed('fsdp'), fsdp_config: distributed('fsdp_config'), fsdp_version: distributed('fsdp_version'), ddp: distributed('ddp'),
  ddp_timeout: ignore, local_rank: ignore, tensor_parallel_size: ignore, context_parallel_size: ignore, world_size: ignore,
  special_tokens: because('the tokenizer of the model stays as it is')('special_tokens'), tokens: because('the tokenizer of the model stays as it is')('tokens'),
  added_tokens_overrides: because('the tokenizer of the model stays as it is')('added_tokens_overrides'),
  rl: because('only supervised fine-tuning is available')('rl'), neftune_noise_alpha: because('NEFTune is not available')('neftune_noise_alpha'),
  early_stopping_patience: because('early stopping is not available; look at the evaluation loss')('early_stopping_patience'), debug: ignore, auto_find_batch_size: ignore,
  unfrozen_parameters: because('train everything with training_type: full, or an adapter')('unfrozen_parameters'),
  rope_theta: because('the model is used as it was made')('rope_theta'), rope_scaling: because('the model is used as it was made')('rope_scaling'),
  overrides_of_model_config: because('the model is used as it was made')('overrides_of_model_config'), gpu_memory_limit: ignore, lora_on_cpu: ignore,
}

/** An Axolotl file as a recipe, with Axolotl's defaults where they differ from ours. */
export function readAxolotl(draft: RecipeDraft, all: Readonly<Record<string, unknown>>): void {
  readKeys(draft, all, table, 'no such setting here')
  draft.orElse('training.training_type', isTrue(all.load_in_4bit) || isTrue(all.load_in_8bit) ? 'lora' : 'full')
  draft.orElse('training.num_epochs', 1)
  draft.orElse('training.batch_size', 1)
  draft.orElse('training.gradient_accumulation_steps', 1)
  draft.orElse('training.lr_scheduler_type', 'cosine')
  draft.orElse('training.weight_decay', 0)
  if (!draft.has('training.warmup_steps') && !draft.has('training.warmup_ratio')) draft.set('training.warmup_ratio', 0.03)
  if (draft.get('training.training_type') === 'full') dropAdapter(draft)
  else draft.orElse('lora.lora_r', 8)
  const text = draft.get('data.format_type') === 'text'
  if (!text && !isTrue(all.train_on_inputs)) draft.set('training.train_on_completions', true)
  if (draft.has('data.eval_dataset')) draft.delete('data.eval_split')
}

/** A full fine-tune has no use for what stands about an adapter. */
export function dropAdapter(draft: RecipeDraft): void {
  for (const key of ['lora_r', 'lora_alpha', 'lora_dropout', 'target_modules', 'modules_to_save', 'use_rslora', 'use_dora', 'init_lora_weights', 'init_adapter',
    'layers_to_transform']) draft.delete(`lora.${key}`)
}
