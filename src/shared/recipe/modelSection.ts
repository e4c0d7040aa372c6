import * as z from 'zod'
import { notYet } from './availability.ts'
import { boolean, choice, optionalText, requiredText } from './field.ts'

/** `model: name` alone is the same as `model: { name: name }`. */
export const modelSection = z.strictObject({
  name: requiredText({
    doc:
      'The model to start from: a folder in Hugging Face layout, or a Hub id such as `Qwen/Qwen2.5-0.5B`. ' +
      'A relative path is relative to the recipe.',
    aliases: ['model_name', 'model_name_or_path', 'path'],
    flag: 'model',
    path: 'model',
    maxLength: 4096,
  }),
  revision: optionalText({ doc: 'Branch, tag or commit of a Hub model. Empty: the main branch.', maxLength: 256 }),
  use_exact_model_name: boolean({
    doc:
      'Load the Hub model of exactly this name. Otherwise a known one is loaded from the repository that has the same weights ' +
      'without a licence to accept first, as the Python library does.',
    default: false,
  }),
  fix_tokenizer: boolean({
    doc:
      'Repair what is known to go wrong with tokenizers, and say so: a padding token that is missing or ends texts, tokens under ' +
      'other names than their ids have, ids beyond the embedding, a tokenizer.json that differs from tokenizer.model, a chat template ' +
      'that never introduces an answer, rows that were never trained. What is saved has the repairs. `unsloth tokenizer DIR` shows ' +
      'what is found. `false` takes the files as they are.',
    default: true,
  }),
  dtype: choice({
    doc: 'How the frozen weights are kept in memory. The arithmetic is chosen by `training.compute`.',
    effect: '`float32` doubles the memory of a 16-bit checkpoint without making it more exact.',
    values: {
      auto: 'as they are stored in the checkpoint',
      bfloat16: '16 bits with the range of float32',
      float16: '16 bits with a small range',
      float32: '32 bits',
    },
    synonyms: { none: 'auto', bf16: 'bfloat16', fp16: 'float16', half: 'float16', fp32: 'float32', float: 'float32' },
    default: 'auto',
    aliases: ['torch_dtype'],
  }),
  trust_remote_code: boolean({
    doc: 'Accepted for compatibility. Code from a model repository is never run.',
    default: false,
    availability: notYet('code from model repositories is never run; remove the key: supported architectures need none'),
  }),
})
