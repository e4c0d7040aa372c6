import * as z from 'zod'
import {
  boolean,
  choice,
  integer,
  mapping,
  optionalInteger,
  optionalText,
  pathList,
  readList,
  readNumber,
  special,
  text,
} from './field.ts'

/** Parts that a column can play. */
export const columnRoles = [
  'text',
  'prompt',
  'completion',
  'instruction',
  'input',
  'output',
  'messages',
  'conversations',
  'tools',
  'system',
  'chosen',
  'rejected',
  'label',
] as const

export const dataSection = z.strictObject({
  dataset: optionalText({
    doc: 'The data set: a Hub id such as `yahma/alpaca-cleaned`, or a path. Use this or `local_dataset`.',
    aliases: ['dataset_name', 'dataset_id'],
    path: 'dataset',
  }),
  local_dataset: pathList({
    doc:
      'Files to train on, read in this order: one path or a list. JSONL, JSON, CSV, TSV, Parquet, and plain text or Markdown ' +
      '(see `format_type: raw`); each also packed as `.gz`. Relative paths are relative to the recipe.',
    aliases: ['local_datasets', 'data_files'],
    path: 'dataset',
    default: [],
  }),
  mix_weights: special(
    z
      .preprocess(
        (value) => {
          const list = readList(value)
          return Array.isArray(list) ? list.map(readNumber) : list
        },
        z.array(z.number().gt(0).lte(1_000_000)).max(64),
      )
      .default([]),
    {
      kind: 'list',
      doc:
        'Mixes several sources in these shares: one weight for `dataset`, if it is given, and one for each entry of ' +
        '`local_dataset`. Each source may have a format of its own. Without weights the files are read one after another.',
      aliases: ['interleave_probs', 'mix_probabilities'],
      default: [],
      nullable: false,
      examples: [[0.7, 0.3]],
      input: { anyOf: [{ type: 'array', items: { type: 'number', exclusiveMinimum: 0 } }, { type: 'string' }] },
    },
  ),
  mix_until: choice({
    doc: 'When a mixture by `mix_weights` is complete.',
    values: {
      first: 'when a source has nothing new left: no row is seen twice in an epoch',
      all: 'when every source has given all its rows: those of smaller ones come several times',
    },
    synonyms: {
      under: 'first',
      first_exhausted: 'first',
      interleave_under: 'first',
      over: 'all',
      all_exhausted: 'all',
      interleave_over: 'all',
    },
    default: 'first',
    aliases: ['mix_strategy'],
  }),
  subset: optionalText({
    doc: 'Configuration of a Hub data set that has several.',
    aliases: ['dataset_config', 'dataset_subset'],
    maxLength: 256,
  }),
  split: text({
    doc:
      'Split to train on, for data sets that have splits, and optionally a slice of it: `train[:5%]`, `train[100:200]`, ' +
      '`train[-10%:]`. Local files are the split `train`; the files of a folder are told apart by their names.',
    aliases: ['train_split', 'dataset_split'],
    default: 'train',
    examples: ['train[:10%]'],
    maxLength: 256,
  }),
  format_type: choice({
    doc: 'The shape of a row. `auto` decides by the columns and says what it found.',
    values: {
      auto: 'decided by the columns',
      alpaca: '`instruction`, optional `input`, `output`, put into the Alpaca prompt',
      chatml: '`messages` with `role` and `content`, through the chat template of the model',
      sharegpt: '`conversations` with `from` and `value`, through the chat template of the model',
      text: 'one text column, trained whole (see `text_column`)',
      completion: '`prompt` and `completion`',
      raw: 'running text, cut into windows of `chunk_size` tokens',
      preference: '`chosen` and `rejected`, with or without `prompt`; the chosen answer is trained',
      kto: '`prompt`, `completion` and a `label`; the rows whose label is true are trained',
    },
    synonyms: {
      messages: 'chatml',
      conversational: 'chatml',
      openai: 'chatml',
      prompt_completion: 'completion',
      'prompt-completion': 'completion',
      plain: 'text',
      raw_text: 'raw',
      dpo: 'preference',
      unpaired_preference: 'kto',
    },
    default: 'auto',
    aliases: ['dataset_format', 'format'],
  }),
  columns: mapping({
    doc: 'Which column plays which part, where it is not the one of that name: `columns: {prompt: question, completion: answer}`.',
    names: columnRoles,
    aliases: ['column_mapping', 'custom_format_mapping'],
  }),
  merged_prompt: optionalText({
    doc:
      'Makes a conversation of one question out of several columns, as `to_sharegpt` does: `{column}` is replaced by the column, ' +
      'and a part in `[[…]]` is left out when one of its columns is empty. The answer is the column `output` (see `columns`).',
    examples: ['{instruction}[[\nYour input is:\n{input}]]'],
    maxLength: 65536,
    verbatim: true,
  }),
  conversation_extension: integer({
    doc:
      'Join so many rows to one conversation, each with others chosen by `training.random_seed`, as `to_sharegpt` does: a model ' +
      'that is trained on single questions learns to go on with a conversation.',
    min: 1,
    max: 64,
    default: 1,
  }),
  text_column: text({
    doc: 'The column that holds the text of `format_type: text`.',
    aliases: ['dataset_text_field', 'text_field'],
    default: 'text',
    maxLength: 256,
  }),
  chat_template: optionalText({
    doc:
      'Chat template to use instead of the one of the model: a name such as `chatml` or `llama-3.1`, the path of a Jinja file, ' +
      'or the template itself.',
    maxLength: 65536,
    verbatim: true,
  }),
  map_eos_token: boolean({
    doc:
      'With a named `chat_template` whose turns end with another token than EOS (`<|im_end|>` of `chatml`): give that token the place ' +
      'of EOS in the tokenizer, so that a model that knows only EOS learns to end its turns without a new row. The tokenizer ' +
      'that is saved has the same names.',
    default: true,
  }),
  train_on_prompt: boolean({
    doc: 'Train the prompts of `format_type: completion`, too. They are only read otherwise.',
    default: false,
  }),
  last_response_only: boolean({
    doc: 'Of each conversation train only the last answer. Turns `training.train_on_completions` on for conversations.',
    default: false,
  }),
  instruction_part: optionalText({
    doc:
      'What stands before a question, for `training.train_on_completions` on text whose format is not recognised. ' +
      'Empty: found automatically. Goes with `response_part`.',
    examples: ['<|im_start|>user\n'],
    verbatim: true,
  }),
  response_part: optionalText({
    doc: 'What stands before an answer; see `instruction_part`.',
    examples: ['<|im_start|>assistant\n'],
    verbatim: true,
  }),
  too_long: choice({
    doc: 'What happens to a sample of more than `training.max_seq_length` tokens. It is counted and reported.',
    values: {
      truncate: 'its end is cut off',
      split: 'it becomes several samples',
      drop: 'it is left out',
      error: 'the run is refused, naming the row',
    },
    synonyms: { cut: 'truncate', skip: 'drop' },
    default: 'truncate',
  }),
  skip_bad_rows: boolean({
    doc:
      'Leave out rows that cannot be read (broken JSON, a missing column, a conversation that the template refuses) and report ' +
      'them, instead of stopping at the first one.',
    default: false,
  }),
  shuffle: boolean({
    doc: 'Shuffle the rows anew in every epoch, by `training.random_seed`. `false` keeps the order of the file.',
    effect: 'Sorted data learns worse without it.',
    default: true,
  }),
  max_samples: optionalInteger({
    doc: 'Use only the first so many rows. Empty: all.',
    min: 1,
    max: 1_000_000_000,
    examples: [1000],
  }),
  eval_dataset: pathList({
    doc: 'Files to evaluate on; never trained on. Use this or `eval_split`.',
    aliases: ['eval_datasets', 'validation_dataset'],
    path: 'dataset',
    default: [],
  }),
  eval_split: special(
    z
      .preprocess(
        (value) => {
          const number = readNumber(value)
          if (number === 0) return null
          return typeof number === 'string' && ['none', 'null', ''].includes(number.trim().toLowerCase()) ? null : number
        },
        z.union([z.number().gt(0).lt(1), z.number().int().gte(1), z.string().trim().min(1).max(256)]).nullable(),
      )
      .default(null),
    {
      kind: 'number',
      doc:
        'What to evaluate on when there is no `eval_dataset`: a share of the rows below 1 or a number of rows, ' +
        'held out by `training.random_seed`; or the name of a split such as `test`.',
      aliases: ['val_size', 'test_size', 'validation_split'],
      default: null,
      nullable: true,
      examples: [0.05, 'test'],
      input: { anyOf: [{ type: 'number', minimum: 0 }, { type: 'string' }, { type: 'null' }] },
    },
  ),
  streaming: boolean({
    doc:
      'Read only as much of the data as `training.max_steps` needs, from the beginning of the files, so that training on a very ' +
      'large data set starts soon. Data larger than the memory are kept on disk either way.',
    effect: 'The first rows are trained, not a selection of all.',
    aliases: ['dataset_streaming'],
    default: false,
  }),
  chunk_size: integer({ doc: 'Tokens in a window of `format_type: raw`.', min: 1, max: 2_000_000, default: 2048 }),
  stride: integer({
    doc: 'Tokens that two neighbouring windows of `format_type: raw` share; less than `chunk_size`.',
    min: 0,
    max: 2_000_000,
    default: 512,
  }),
})
