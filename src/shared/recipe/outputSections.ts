import * as z from 'zod'
import { notYet, runsAs } from './availability.ts'
import { boolean, choiceList, integer, number, optionalInteger, optionalNumber, optionalText, text, textList } from './field.ts'

const inRunDirectory = 'loss, learning rate and gradient norm of every step are written to the run directory instead'

export const loggingSection = z.strictObject({
  logging_steps: integer({
    doc: 'Print a line every so many steps. The run directory records every step.',
    aliases: ['log_frequency', 'log_steps'],
    min: 1,
    max: 1_000_000,
    default: 1,
  }),
  enable_wandb: boolean({
    doc: 'Send metrics to Weights & Biases.',
    aliases: ['use_wandb'],
    default: false,
    availability: runsAs(`Weights & Biases is not available yet; ${inRunDirectory}`),
  }),
  wandb_project: text({ doc: 'Project at Weights & Biases.', default: 'unsloth-training', maxLength: 256 }),
  enable_tensorboard: boolean({
    doc: 'Write event files for TensorBoard.',
    aliases: ['use_tensorboard'],
    default: false,
    availability: runsAs(`TensorBoard files are not available yet; ${inRunDirectory}`),
  }),
  tensorboard_dir: text({ doc: 'Folder for TensorBoard files.', default: 'runs', path: 'folder' }),
})

export const saveSection = z.strictObject({
  method: choiceList({
    doc: 'What to save at the end: one or several.',
    values: {
      lora: 'the adapter alone, as PEFT reads it',
      merged_16bit: 'the whole model in 16 bits, the adapter merged in',
      merged_4bit: 'the whole model in 4 bits (NF4), as transformers with bitsandbytes loads it',
      gguf: 'one GGUF file for each entry of `quantization`',
    },
    synonyms: {
      merged: ['merged_16bit'],
      'merged-16bit': ['merged_16bit'],
      'merged-4bit': ['merged_4bit'],
      merged_4bit_forced: ['merged_4bit'],
      '4bit': ['merged_4bit'],
      adapter: ['lora'],
      none: [],
    },
    default: ['lora'],
    defaultDoc: '`lora`; `merged_16bit` with `training_type: full`',
    aliases: ['save_method', 'methods'],
    flag: 'save_method',
    availability: notYet(
      'gguf is not available yet; use lora, merged_16bit or merged_4bit',
      (value) => Array.isArray(value) && value.includes('gguf'),
    ),
  }),
  path: optionalText({
    doc: 'Folder for the result; with several methods, one folder for each below it. Empty: in the run directory.',
    aliases: ['save_path', 'save_directory'],
    flag: 'save_path',
    path: 'folder',
  }),
  max_shard_size: text({
    doc: 'Largest safetensors file of a merged model, such as `5GB` or `500MB`.',
    pattern: /^\d+(?:\.\d+)?\s*(?:[KMGT]i?)?B?$/i,
    expected: 'a size such as 5GB or 500MB',
    default: '5GB',
  }),
  quantization: textList({
    doc: 'GGUF types to write with `method: gguf`, such as `q8_0` or `q4_k_m`.',
    aliases: ['quantization_method'],
    pattern: /^[a-z0-9_]+$/i,
    expected: 'the name of a GGUF type such as q4_k_m',
    default: ['q8_0'],
  }),
})

export const hubSection = z.strictObject({
  push: boolean({
    doc: 'Upload the result to the Hugging Face Hub. The token comes from the environment, never from a recipe.',
    aliases: ['push_to_hub', 'push_model'],
    flag: 'push_to_hub',
    default: false,
    availability: runsAs('uploading is not available yet; the result is saved on this machine only'),
  }),
  repo_id: optionalText({
    doc: 'Repository to upload to, such as `me/my-model`.',
    aliases: ['hub_path', 'hub_model_id'],
    flag: 'repo_id',
    pattern: /^(?!.*\.\.)[\w.-]+(?:\/[\w.-]+)?$/,
    expected: 'a repository such as me/my-model',
    maxLength: 256,
  }),
  private: boolean({ doc: 'Make a new repository private.', aliases: ['hub_private_repo'], flag: 'private', default: true }),
  commit_message: text({ doc: 'Message of the upload.', flag: null, default: 'Trained with Unsloth', maxLength: 1000 }),
})

/** Sampling settings that Studio writes into its files; training does not use them. */
export const inferenceSection = z.strictObject({
  temperature: number({ doc: 'Randomness of sampling; 0 is greedy.', flag: null, min: 0, max: 100, default: 0.7 }),
  top_p: number({
    doc: 'Sample from the smallest set of tokens with this probability.',
    flag: null,
    above: 0,
    max: 1,
    default: 0.9,
  }),
  top_k: integer({
    doc: 'Sample from so many of the likeliest tokens; 0 or −1: all.',
    flag: null,
    min: -1,
    max: 1_000_000,
    default: 40,
  }),
  min_p: optionalNumber({ doc: 'Drop tokens less likely than this share of the likeliest.', flag: null, min: 0, max: 1 }),
  repetition_penalty: number({ doc: 'Above 1: repeat less.', flag: null, above: 0, max: 100, default: 1.1 }),
  max_new_tokens: optionalInteger({ doc: 'Tokens to write at most.', flag: null, min: 1, max: 2_000_000 }),
  trust_remote_code: boolean({
    doc: 'Accepted for compatibility. Code from a model repository is never run.',
    flag: null,
    default: false,
  }),
})
