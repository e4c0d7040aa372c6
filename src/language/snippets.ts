/** A text to insert with places to fill in, in the snippet syntax of the language server protocol. */
export interface Snippet {
  readonly label: string
  readonly detail: string
  readonly doc: string
  readonly body: string
}

const head = (training: string): string => `version: 1
model: \${1:Qwen/Qwen2.5-0.5B}
data:
  local_dataset: \${2:data/train.jsonl}
training:
${training}`

/** Whole recipes, for an empty file. */
export const wholeRecipes: readonly Snippet[] = [
  {
    label: 'recipe: LoRA',
    detail: 'fine-tune an adapter',
    doc: 'Trains a small adapter; the model stays as it is. The right start for most uses.',
    body: `${head(`  max_seq_length: \${3:2048}
  num_epochs: \${4:1}
  learning_rate: 2e-4
  batch_size: 2
  gradient_accumulation_steps: 4
`)}lora:
  lora_r: \${5:16}
  lora_alpha: \${6:16}
save:
  method: lora
$0`,
  },
  {
    label: 'recipe: chat',
    detail: 'LoRA on conversations, answers only',
    doc: 'Trains on the answers of conversations through the chat template of the model, with evaluation on rows held out.',
    body: `${head(`  max_seq_length: \${3:2048}
  num_epochs: \${4:1}
  learning_rate: 2e-4
  batch_size: 2
  gradient_accumulation_steps: 4
  train_on_completions: true
  eval_steps: 0.1
`).replace('training:', '  eval_split: 0.05\ntraining:')}lora:
  lora_r: \${5:16}
  lora_alpha: \${6:16}
save:
  method: lora
$0`,
  },
  {
    label: 'recipe: QLoRA',
    detail: 'adapter on 4-bit weights, for large models',
    doc: 'As LoRA, with the frozen weights in 4 bits: a quarter of the memory.',
    body: `${head(`  load_in_4bit: true
  max_seq_length: \${3:2048}
  num_epochs: \${4:1}
  learning_rate: 2e-4
  batch_size: 2
  gradient_accumulation_steps: 4
`)}lora:
  lora_r: \${5:16}
  lora_alpha: \${6:16}
save:
  method: lora
$0`,
  },
  {
    label: 'recipe: full fine-tune',
    detail: 'train every weight, for small models',
    doc: 'Trains all weights; about 16 bytes of memory for each parameter.',
    body: `${head(`  training_type: full
  max_seq_length: \${3:2048}
  num_epochs: \${4:1}
  learning_rate: 2e-5
  batch_size: 2
  gradient_accumulation_steps: 4
`)}save:
  method: merged_16bit
$0`,
  },
  {
    label: 'recipe: short trial',
    detail: '20 steps, to see that everything works',
    doc: 'A few steps on the first rows: shows in a minute whether model, data and memory fit together.',
    body: `version: 1
model: \${1:stories260k}
data:
  local_dataset: \${2:data/train.jsonl}
  max_samples: 200
training:
  max_seq_length: \${3:512}
  max_steps: 20
  warmup_steps: 2
lora:
  lora_r: 8
  lora_alpha: 8
$0`,
  },
]

/** Parts of a recipe, by the section they go into. */
export const sectionSnippets: Readonly<Record<string, readonly Snippet[]>> = {
  training: [
    {
      label: 'checkpoints',
      detail: 'save_steps and save_total_limit',
      doc: 'Writes checkpoints to resume from, and keeps the latest.',
      body: 'save_steps: ${1:100}\nsave_total_limit: ${2:3}',
    },
    {
      label: 'cosine schedule',
      detail: 'lr_scheduler_type with warm-up',
      doc: 'Warm-up over 3 % of the steps, then half a cosine to 0.',
      body: 'lr_scheduler_type: cosine\nwarmup_ratio: ${1:0.03}',
    },
  ],
  lora: [
    {
      label: 'all linear layers',
      detail: 'target_modules: all-linear',
      doc: 'An adapter on every linear layer of the model.',
      body: 'target_modules: all-linear',
    },
    {
      label: 'new language',
      detail: 'modules_to_save',
      doc: 'Trains the embedding and the head along: for new words or a new language.',
      body: 'modules_to_save: [embed_tokens, lm_head]',
    },
  ],
  data: [
    {
      label: 'evaluation',
      detail: 'eval_split',
      doc: 'Holds rows out of training and measures the loss on them.',
      body: 'eval_split: ${1:0.05}',
    },
  ],
}

/** The body of a snippet as plain text, with the texts that stand in its places. */
export function expandSnippet(body: string): string {
  return body
    .replace(/\$\{\d+:((?:\\.|[^}\\])*)\}/g, '$1')
    .replace(/\$\d+/g, '')
    .replace(/\\([\\$}])/g, '$1')
}
