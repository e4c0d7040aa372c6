import { isAbsolute, relative, sep } from 'node:path'
import { stringify } from 'yaml'

export interface RecipeChoices {
  /** A folder, a bundled name or a Hub id. */
  readonly model: string
  readonly dataset: string
  readonly method: 'lora' | 'qlora' | 'full'
  readonly maxSteps?: number
  readonly learningRate?: string
}

/** A path as it stands in a recipe of `folder`: relative where that is shorter to read. */
export function pathInRecipe(path: string, folder: string): string {
  if (!isAbsolute(path)) return path
  const inside = relative(folder, path).split(sep).join('/')
  if (isAbsolute(inside) || inside.startsWith('../../..')) return path
  return inside.startsWith('.') ? inside : `./${inside}`
}

const scalar = (value: string): string => stringify(value, { lineWidth: 0 }).trimEnd()

/** A recipe of what was chosen: short, with a word on each line that people change first. */
export function recipeText({ model, dataset, method, maxSteps, learningRate }: RecipeChoices): string {
  const rate = learningRate ?? (method === 'full' ? '2e-5' : '2e-4')
  const lora = method === 'full' ? [] : ['', 'lora:', '  lora_r: 16', '  lora_alpha: 16']
  return [
    'version: 1',
    '',
    `model: ${scalar(model)}`,
    '',
    'data:',
    `  local_dataset: ${scalar(dataset)}`,
    '  eval_split: 0.05 # held out, never trained on',
    '',
    'training:',
    ...(method === 'full' ? ['  training_type: full'] : []),
    ...(method === 'qlora' ? ['  load_in_4bit: true # the frozen weights take a quarter of the memory'] : []),
    '  max_seq_length: 512',
    '  batch_size: 2',
    '  gradient_accumulation_steps: 4',
    ...(maxSteps === undefined ? ['  num_epochs: 1'] : [`  max_steps: ${maxSteps}`]),
    `  learning_rate: ${rate}`,
    '  save_steps: 50 # checkpoints to resume from',
    ...lora,
    '',
    'save:',
    `  method: [${method === 'full' ? 'merged_16bit' : 'lora'}]`,
    '',
  ].join('\n')
}

/** The first of finetune.yaml, finetune-2.finetune.yaml, … that `exists` does not know; all of them open as recipes. */
export function freeRecipeName(exists: (name: string) => boolean): string {
  for (let count = 1; ; count++) {
    const name = count === 1 ? 'finetune.yaml' : `recipe-${count}.finetune.yaml`
    if (!exists(name)) return name
  }
}
