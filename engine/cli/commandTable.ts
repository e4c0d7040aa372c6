import type { FlagTable } from './flags.ts'

export interface Positional {
  readonly name: string
  readonly summary: string
  readonly required?: boolean
  /** Takes all words that are left. */
  readonly many?: boolean
}

export interface CommandSpec {
  readonly summary: string
  readonly positionals: readonly Positional[]
  readonly flags: FlagTable
  readonly examples?: readonly string[]
  /** Every key of the recipe is a flag, too. */
  readonly recipe?: boolean
  /** Left out of the list of commands: started by the program itself. */
  readonly internal?: boolean
}

const json = { type: 'boolean', summary: 'print JSON for programs' } as const
const threads = {
  type: 'integer',
  summary: 'threads to compute with; 0: one for each physical core',
  default: 0,
  min: 0,
  max: 1024,
  value: 'N',
} as const
const device = {
  type: 'text',
  summary: 'where to compute',
  choices: ['auto', 'cpu', 'cuda', 'cuda:N'],
  pattern: /^cuda:\d{1,3}$/,
  default: 'auto',
  value: 'NAME',
} as const
const compute = {
  type: 'text',
  summary: 'precision of the arithmetic',
  choices: ['auto', 'float32', 'tfloat32', 'bfloat16', 'float16'],
  default: 'auto',
  value: 'TYPE',
} as const
const runDirectory = { name: 'DIR', summary: 'run directory', required: true } as const

/** The command line of the program, in the order in which help lists it. */
export const commands = {
  finetune: {
    summary: 'fine-tune a model as a recipe says',
    positionals: [{ name: 'RECIPE', summary: 'recipe file; finetune.yaml when left out and no model is named' }],
    recipe: true,
    flags: {
      config: { type: 'text', summary: 'recipe file, as in `unsloth train`', short: 'c', value: 'FILE' },
      dry_run: { type: 'boolean', summary: 'print the resolved recipe, the plan and the memory it needs; train nothing' },
      print_plan: {
        type: 'boolean',
        summary: 'with --dry-run: also print every command of a micro-step and where its memory lies',
      },
      json,
      detach: { type: 'boolean', summary: 'start the run in the background and print its directory' },
    },
    examples: [
      'unsloth finetune finetune.yaml',
      'unsloth finetune finetune.yaml --learning_rate 1e-4 --max_steps 100 --dry-run',
      'unsloth finetune --model ./models/llama --local_dataset train.jsonl --num_epochs 1',
      'unsloth finetune --model_name ./models/llama --dataset train.jsonl --r 16 --max_steps 60 --save_model --save_method lora',
    ],
  },
  data: {
    summary: 'show what a recipe trains on, token by token',
    positionals: [{ name: 'RECIPE', summary: 'recipe file; finetune.yaml when left out and no model is named' }],
    recipe: true,
    flags: {
      config: { type: 'text', summary: 'recipe file, as in `unsloth train`', short: 'c', value: 'FILE' },
      sample: { type: 'integer', summary: 'samples to show, spread over the data', default: 3, min: 0, max: 100_000, value: 'N' },
      json,
    },
    examples: [
      'unsloth data finetune.yaml',
      'unsloth data finetune.yaml --sample 10',
      'unsloth data --model ./models/llama --local_dataset train.csv --columns prompt=question,completion=answer',
    ],
  },
  tokenizer: {
    summary: 'examine the tokenizer of a model: what is wrong with it, and what is changed; or add tokens',
    positionals: [{ name: 'DIR', summary: 'model folder', required: true }],
    flags: {
      add_tokens: {
        type: 'text',
        summary: 'tokens to add, separated by spaces; the resized model is written to --output',
        value: 'TOKENS',
      },
      output: { type: 'text', summary: 'new folder for the model with the added tokens', value: 'DIR' },
      interpolation: {
        type: 'number',
        summary:
          'begin each new row between the mean of the trained rows (0; the default) and that of the pieces ' +
          'the token had so far (1)',
        min: 0,
        max: 1,
        value: 'X',
      },
      multiple_of: {
        type: 'integer',
        summary: 'make the number of rows a multiple of this',
        default: 1,
        min: 1,
        max: 65536,
        value: 'N',
      },
      json,
    },
    examples: [
      'unsloth tokenizer ./models/llama',
      'unsloth tokenizer ./models/llama --add_tokens "<think> </think>" --output ./models/llama-thinking',
    ],
  },
  generate: {
    summary: 'write text with a model, an adapter or a run',
    positionals: [
      { name: 'MODEL', summary: 'model folder, adapter folder or run directory', required: true },
      { name: 'PROMPT', summary: 'prompts; several are written as one batch', many: true },
    ],
    flags: {
      adapter: { type: 'text', summary: 'adapter folder to put on the model', value: 'DIR' },
      prompt_file: { type: 'text', summary: 'read the prompt from a file; - is standard input', value: 'FILE' },
      chat: { type: 'boolean', summary: 'put the prompt through the chat template as a message of the user' },
      system: { type: 'text', summary: 'system message, with --chat', value: 'TEXT' },
      max_new_tokens: { type: 'integer', summary: 'tokens to write at most', default: 256, min: 1, max: 2_000_000, value: 'N' },
      greedy: { type: 'boolean', summary: 'always the likeliest token; the same as --temperature 0' },
      temperature: { type: 'number', summary: 'randomness; 0 is greedy', default: 0.7, min: 0, max: 100, value: 'T' },
      top_k: {
        type: 'integer',
        summary: 'sample from so many of the likeliest tokens; 0: all',
        default: 40,
        min: -1,
        value: 'K',
      },
      top_p: {
        type: 'number',
        summary: 'sample from the smallest set of tokens with this probability',
        default: 0.9,
        min: 0,
        max: 1,
        value: 'P',
      },
      min_p: {
        type: 'number',
        summary: 'drop tokens less likely than this share of the likeliest',
        default: 0,
        min: 0,
        max: 1,
        value: 'P',
      },
      repetition_penalty: { type: 'number', summary: 'above 1: repeat less', default: 1.1, min: 0.01, max: 100, value: 'X' },
      stop: { type: 'list', summary: 'stop before any of these texts', value: 'TEXT' },
      seed: { type: 'integer', summary: 'seed of the sampling', default: 3407, min: 0, max: 4_294_967_295, value: 'N' },
      max_seq_length: { type: 'integer', summary: 'room for prompt and answer, in tokens', min: 1, max: 2_000_000, value: 'N' },
      device,
      compute,
      threads,
      json,
    },
    examples: [
      'unsloth generate outputs/my-run "Once upon a time" --temperature 0.8',
      'unsloth generate ./models/llama --chat "Hello!"',
    ],
  },
  merge: {
    summary: 'write an adapter and its base model as one model',
    positionals: [
      { name: 'ADAPTER', summary: 'adapter folder or run directory', required: true },
      { name: 'OUTPUT', summary: 'folder for the merged model', required: true },
    ],
    flags: {
      max_shard_size: { type: 'text', summary: 'largest safetensors file', default: '5GB', value: 'SIZE' },
      device,
      threads,
      json,
    },
    examples: ['unsloth merge outputs/my-run ./models/my-model'],
  },
  verify: {
    summary: 'compare the engine with reference results made by Hugging Face',
    positionals: [{ name: 'DIR', summary: 'folder with a model and golden.safetensors', required: true }],
    flags: {
      device: { ...device, default: 'cpu' },
      compute: { ...compute, default: 'float32' },
      threads,
      json,
      out: { type: 'text', summary: "write what was computed, under the golden file's names", value: 'FILE' },
      skip: { type: 'list', summary: 'quantities that need not be computed', value: 'NAME', commas: true },
    },
    examples: [
      'unsloth verify golden/llama --json',
      'unsloth verify golden/llama --skip dpo_loss,greedy_ids --out computed.safetensors',
    ],
  },
  'gpu-check': {
    summary: 'compare a GPU with the processor, and measure it',
    positionals: [{ name: 'NAME', summary: 'commands to compare; all, training and a short bench when left out', many: true }],
    flags: {
      golden: { type: 'list', summary: 'reference cases, or folders of them, to verify on the GPU too', value: 'DIR' },
      ops: { type: 'boolean', summary: 'compare commands alone: no training, no measurement' },
      no_bench: { type: 'boolean', summary: 'leave out the measurement' },
      device,
      compute,
      json,
    },
    examples: ['unsloth gpu-check', 'unsloth gpu-check gemm attention --compute bfloat16'],
  },
  inspect: {
    summary: 'show what a tensor file, model folder or run holds',
    positionals: [{ name: 'PATH', summary: 'safetensors file, model folder or run directory', required: true }],
    flags: { json },
    examples: ['unsloth inspect model.safetensors', 'unsloth inspect ./models/llama --json'],
  },
  doctor: { summary: 'say what this machine can do, and why not more', positionals: [], flags: { json } },
  bench: {
    summary: 'measure operations and whole training steps',
    positionals: [{ name: 'NAME', summary: 'operations to measure; all when left out', many: true }],
    flags: {
      shape: { type: 'list', summary: 'shapes of models', value: 'NAME', commas: true },
      batch: { type: 'integer', summary: 'sequences in a step', default: 1, min: 1, max: 4096, value: 'N' },
      data: {
        type: 'text',
        summary: 'rows of one length, or of the lengths of instruction data',
        choices: ['even', 'instruction'],
        default: 'even',
        value: 'KIND',
      },
      recompute: {
        type: 'text',
        summary: 'what the backward pass recomputes',
        choices: ['auto', 'none', 'full', 'offload'],
        default: 'auto',
        value: 'WHAT',
      },
      no_profile: { type: 'boolean', summary: 'leave out the table of commands' },
      tokens: { type: 'integer', summary: 'tokens in a sequence', default: 512, min: 1, max: 1_000_000, value: 'N' },
      steps: { type: 'integer', summary: 'steps to measure', default: 5, min: 1, max: 10_000, value: 'N' },
      layers: { type: 'integer', summary: 'use only so many layers of the shape', min: 1, max: 1000, value: 'N' },
      rank: { type: 'integer', summary: 'rank of the adapter; 0: full fine-tuning', default: 16, min: 0, max: 16384, value: 'R' },
      load_in_4bit: { type: 'boolean', summary: 'frozen linear layers in 4 bits' },
      load_in_8bit: { type: 'boolean', summary: 'frozen linear layers in 8 bits' },
      optim: {
        type: 'text',
        summary: 'the optimizer',
        choices: ['adamw_torch', 'adamw_8bit', 'lion_32bit', 'lion_8bit', 'sgd', 'adafactor'],
        default: 'adamw_torch',
        value: 'NAME',
      },
      ops: { type: 'boolean', summary: 'operations only, no whole step' },
      memory: {
        type: 'boolean',
        summary: 'compare planned with measured memory in twenty runs, or in those whose names hold one of the words given',
      },
      device,
      compute,
      threads,
      json,
    },
    examples: [
      'unsloth bench --shape qwen2.5-0.5b --tokens 512',
      'unsloth bench gemm --compute bfloat16',
      'unsloth bench --memory --json',
    ],
  },
  demo: {
    summary: 'fine-tune the bundled model on the bundled text and show the difference',
    positionals: [],
    flags: { output_dir: { type: 'text', summary: 'folder for the run', value: 'DIR' }, threads, json },
  },
  status: {
    summary: 'show the state of a run',
    positionals: [{ name: 'DIR', summary: 'run directory, or a folder of runs' }],
    flags: { json },
  },
  resume: {
    summary: 'go on with a paused, stopped or interrupted run',
    positionals: [runDirectory],
    flags: { detach: { type: 'boolean', summary: 'in the background' }, json },
  },
  pause: { summary: 'write a checkpoint and free the device', positionals: [runDirectory], flags: { json } },
  stop: {
    summary: 'stop a run',
    positionals: [runDirectory],
    flags: { save: { type: 'boolean', summary: 'write a checkpoint and the result first' }, json },
  },
  docs: {
    summary: 'write the generated docs',
    positionals: [{ name: 'ROOT', summary: 'root of the repository; the current folder when left out' }],
    flags: { check: { type: 'boolean', summary: 'write nothing; fail when a file is not current' } },
    internal: true,
  },
  'memory-case': {
    summary: 'plan and measure the memory of one run',
    positionals: [{ name: 'CASE', summary: 'the run as JSON', required: true }],
    flags: { device, threads },
    internal: true,
  },
  'gpu-overhead': {
    summary: 'measure what a process takes on a GPU beside what it asks for',
    positionals: [],
    flags: { device },
    internal: true,
  },
  serve: {
    summary: 'answer requests of an editor on standard input and output',
    positionals: [],
    flags: { stdio: { type: 'boolean', summary: 'use standard input and output, not the channel of a parent process' } },
    internal: true,
  },
  run: { summary: 'run what a run directory says', positionals: [runDirectory], flags: {}, internal: true },
} as const satisfies Readonly<Record<string, CommandSpec>>

export type CommandName = keyof typeof commands
export const commandNames = Object.keys(commands) as CommandName[]
