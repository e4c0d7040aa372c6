import { recipeFields } from '#shared/recipe.ts'
import { keyTable, optimizer, readKeys, resume, scheduler, steps, warmup, type Read } from './common.ts'
import type { RecipeDraft } from './recipeDraft.ts'
import { asNames, asNumber, isEmpty, isFalse, isFile, isMapping, isTrue } from './values.ts'

/** Types of Axolotl's data sets, by the word before a dot or colon. */
const formats: Readonly<Record<string, string>> = {
  alpaca: 'alpaca',
  alpaca_chat: 'alpaca',
  alpaca_w_system: 'alpaca',
  completion: 'text',
  pretrain: 'text',
  chat_template: 'auto',
  sharegpt: 'sharegpt',
  gpteacher: 'alpaca',
  oasst: 'auto',
}

const conversationKeys = [
  'field_messages',
  'message_property_mappings',
  'message_field_role',
  'message_field_content',
  'roles',
  'roles_to_train',
  'train_on_eos',
]

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
    for (const key of conversationKeys) {
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
    if (!isEmpty(type))
      draft.note(
        'datasets.type',
        type,
        'a prompt of its own; write the prompt and the answer into the columns prompt and completion',
      )
    return
  }
  const format = formats[type.split(/[.:]/)[0]!]
  if (format === undefined) draft.note('datasets.type', type, 'the format is found by the columns')
  else if (format !== 'auto') draft.orElse('data.format_type', format)
}

const testDatasets: Read = (draft, value) => {
  const entries = Array.isArray(value) ? (value as unknown[]) : []
  const files = entries
    .filter(isMapping)
    .flatMap(({ path, data_files: data }) => [...asNames(data), ...(typeof path === 'string' && isFile(path) ? [path] : [])])
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

const perEpoch =
  (path: 'eval' | 'save'): Read =>
  (draft, value, all) => {
    const count = asNumber(value)
    if (count === undefined || count <= 0) return
    const epochs = asNumber(all.num_epochs) ?? 1
    if (path === 'eval')
      draft.set('training.eval_steps', Number((1 / (count * Math.max(epochs, 1 / count + 1e-6))).toPrecision(3)))
    else if (count * epochs > 1) draft.note('saves_per_epoch', value, 'give a number of steps in training.save_steps')
  }

const targetLinear: Read = (draft, value) => {
  if (isTrue(value)) draft.set('lora.target_modules', 'all-linear')
}

const modulesToSave: Read = (draft, value) => {
  if (!isEmpty(value)) draft.set('lora.modules_to_save', asNames(value))
}

const chatTemplate: Read = (draft, value) => {
  if (typeof value !== 'string' || value === 'tokenizer_default') return
  draft.note('chat_template', value, 'the chat template of the model is used; data.chat_template takes another one')
}

const schedulerArguments: Read = (draft, value) => {
  if (!isMapping(value)) return
  draft.set('training.num_cycles', value.num_cycles)
  draft.set('training.power', value.power)
}

const autoResume: Read = (draft, value) => {
  if (!isTrue(value)) return
  draft.note('auto_resume_from_checkpoints', value, 'resume with the command Resume Run, or training.resume_from: latest')
}

const wandbProject: Read = (draft, value) => {
  if (isEmpty(value)) return
  draft.set('logging.enable_wandb', true)
  draft.set('logging.wandb_project', value)
}

const table = keyTable({
  renamed: {
    base_model: 'model.name',
    revision_of_model: 'model.revision',
    load_in_8bit: 'training.load_in_8bit',
    load_in_4bit: 'training.load_in_4bit',
    lora_model_dir: 'lora.init_adapter',
    lora_r: 'lora.lora_r',
    lora_alpha: 'lora.lora_alpha',
    lora_dropout: 'lora.lora_dropout',
    peft_use_rslora: 'lora.use_rslora',
    peft_use_dora: 'lora.use_dora',
    peft_layers_to_transform: 'lora.layers_to_transform',
    peft_init_lora_weights: 'lora.init_lora_weights',
    val_set_size: 'data.eval_split',
    shuffle_merged_datasets: 'data.shuffle',
    chat_template_jinja: 'data.chat_template',
    sequence_len: 'training.max_seq_length',
    sample_packing: 'training.packing',
    micro_batch_size: 'training.batch_size',
    eval_batch_size: 'training.per_device_eval_batch_size',
    gradient_accumulation_steps: 'training.gradient_accumulation_steps',
    num_epochs: 'training.num_epochs',
    max_steps: 'training.max_steps',
    learning_rate: 'training.learning_rate',
    embedding_lr: 'training.embedding_learning_rate',
    warmup_ratio: 'training.warmup_ratio',
    weight_decay: 'training.weight_decay',
    adam_beta1: 'training.adam_beta1',
    adam_beta2: 'training.adam_beta2',
    adam_epsilon: 'training.adam_epsilon',
    max_grad_norm: 'training.max_grad_norm',
    seed: 'training.random_seed',
    gradient_checkpointing: 'training.gradient_checkpointing',
    logging_steps: 'logging.logging_steps',
    save_total_limit: 'training.save_total_limit',
    output_dir: 'training.output_dir',
    hub_model_id: 'hub.repo_id',
    wandb_name: 'training.run_name',
    use_tensorboard: 'logging.enable_tensorboard',
    use_wandb: 'logging.enable_wandb',
    torch_dtype: 'model.dtype',
  },
  read: {
    adapter,
    lora_target_modules: targets,
    datasets,
    test_datasets: testDatasets,
    lr_scheduler: scheduler('lr_scheduler'),
    warmup_steps: warmup,
    optimizer: optimizer('optimizer'),
    eval_steps: steps('training.eval_steps', 'eval_steps'),
    save_steps: steps('training.save_steps', 'save_steps'),
    evals_per_epoch: perEpoch('eval'),
    saves_per_epoch: perEpoch('save'),
    resume_from_checkpoint: resume,
    lora_target_linear: targetLinear,
    lora_modules_to_save: modulesToSave,
    chat_template: chatTemplate,
    lr_scheduler_kwargs: schedulerArguments,
    auto_resume_from_checkpoints: autoResume,
    wandb_project: wandbProject,
  },
  refused: {
    'code from model repositories is never run': ['trust_remote_code'],
    'padding is never computed, so there is nothing to gain': ['group_by_length'],
    'see the adam_ keys': ['optim_args'],
    'attention is exact and fused in any case': ['s2_attention'],
    'fused kernels are always used': ['plugins'],
    'one machine trains': ['deepspeed', 'fsdp', 'fsdp_config', 'fsdp_version', 'ddp'],
    'the tokenizer of the model stays as it is': ['special_tokens', 'tokens', 'added_tokens_overrides'],
    'only supervised fine-tuning is available': ['rl'],
    'NEFTune is not available': ['neftune_noise_alpha'],
    'early stopping is not available; look at the evaluation loss': ['early_stopping_patience'],
    'train everything with training_type: full, or an adapter': ['unfrozen_parameters'],
    'the model is used as it was made': ['rope_theta', 'rope_scaling', 'overrides_of_model_config'],
  },
  ignored: [
    'base_model_config',
    'base_model_ignore_patterns',
    'model_type',
    'tokenizer_type',
    'tokenizer_config',
    'processor_type',
    'is_llama_derived_model',
    'is_mistral_derived_model',
    'is_falcon_derived_model',
    'strict',
    'tokenizer_use_fast',
    'tokenizer_legacy',
    'save_safetensors',
    'lora_fan_in_fan_out',
    'dataset_prepared_path',
    'dataset_processes',
    'dataset_keep_in_memory',
    'dataloader_num_workers',
    'dataloader_prefetch_factor',
    'dataloader_pin_memory',
    'eval_sample_packing',
    'pad_to_sequence_len',
    'sample_packing_eff_est',
    'total_num_tokens',
    'gradient_checkpointing_kwargs',
    'train_on_inputs',
    'eval_strategy',
    'evaluation_strategy',
    'save_strategy',
    'hub_strategy',
    'push_dataset_to_hub',
    'hf_use_auth_token',
    'wandb_entity',
    'wandb_watch',
    'wandb_run_id',
    'wandb_log_model',
    'wandb_mode',
    'bf16',
    'fp16',
    'bfloat16',
    'float16',
    'tf32',
    'torch_compile',
    'bf16_full_eval',
    'flash_attention',
    'xformers_attention',
    'sdp_attention',
    'eager_attention',
    'flash_attn_cross_entropy',
    'flash_attn_rms_norm',
    'flash_attn_fuse_qkv',
    'flash_attn_fuse_mlp',
    'flex_attention',
    'lora_mlp_kernel',
    'lora_qkv_kernel',
    'lora_o_kernel',
    'liger_rope',
    'liger_rms_norm',
    'liger_glu_activation',
    'liger_layer_norm',
    'liger_fused_linear_cross_entropy',
    'cut_cross_entropy',
    'ddp_timeout',
    'local_rank',
    'tensor_parallel_size',
    'context_parallel_size',
    'world_size',
    'debug',
    'auto_find_batch_size',
    'gpu_memory_limit',
    'lora_on_cpu',
  ],
})

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
  for (const { path, section } of recipeFields) if (section === 'lora') draft.delete(path)
}
