/** The bundled story teller learns fables: about ten seconds on two cores. */
export const starterRecipe = (
  data: string,
): string => `# A tiny model of children's stories learns to tell fables. Press ▶ Fine-tune above; it takes about ten seconds on two cores.
version: 1

model: stories260k # comes with the extension

data:
  local_dataset: ${data} # one {"text": …} in a line
  eval_split: 16 # fables that are never trained on

training:
  max_seq_length: 512
  batch_size: 16
  gradient_accumulation_steps: 1
  max_steps: 80
  learning_rate: 0.01 # a model of 260 thousand parameters bears fifty times the usual rate
  lr_scheduler_type: cosine
  warmup_steps: 5
  eval_steps: 20
  save_steps: 20 # checkpoints to resume from

lora:
  lora_r: 16
  lora_alpha: 32
  target_modules: all-linear

save:
  method: [lora, merged_16bit]
`
