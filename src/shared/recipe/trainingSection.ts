import * as z from 'zod'
import { notYet } from './availability.ts'
import { parseByteSize } from './derived.ts'
import {
  boolean,
  choice,
  integer,
  number,
  openChoice,
  optionalInteger,
  optionalNumber,
  optionalText,
  readNumber,
  special,
  text,
} from './field.ts'

const schedulers = {
  constant: 'the same rate throughout, no warm-up',
  constant_with_warmup: 'warm-up, then the same rate',
  linear: 'warm-up, then a straight line to 0',
  cosine: 'warm-up, then half a cosine to 0 (`num_cycles` 0.5)',
  cosine_with_restarts: 'warm-up, then `num_cycles` times a cosine from the full rate to 0',
  polynomial: 'warm-up, then a polynomial of degree `power` down to `lr_end`',
} as const

const optimizers = {
  adamw_torch: 'AdamW with 32-bit moments',
  adamw_8bit: 'AdamW with 8-bit moments: a quarter of their memory',
  paged_adamw_8bit: '`adamw_8bit` whose moments go to the host where the GPU has no room for them',
  paged_adamw_32bit: '`adamw_torch` in the same way',
  lion_32bit: 'Lion: one moment, steps of the same size; wants about a tenth of the learning rate',
  lion_8bit: 'Lion with an 8-bit moment',
  paged_lion_32bit: '`lion_32bit` in the same way',
  paged_lion_8bit: '`lion_8bit` in the same way',
  sgd: 'plain gradient descent without momentum: no moments at all',
  adafactor: 'Adafactor with the given learning rate: moments of rows and columns only',
} as const

const memorySize = /^\s*\d+(?:\.\d+)?\s*(?:[kmgtKMGT]i?B)?\s*$/

/** "20GiB" and "20000 MB" in GiB, "20" as it is; anything else stays for zod to refuse. */
function readMemory(value: unknown): unknown {
  if (typeof value !== 'string') return value
  if (/^\s*(?:none|null)?\s*$/i.test(value)) return null
  if (!memorySize.test(value)) return value
  return /[a-z]/i.test(value) ? parseByteSize(value) / 2 ** 30 : Number(value)
}

export const trainingSection = z.strictObject({
  training_type: choice({
    doc: 'What is trained.',
    effect: '`full` needs about 16 bytes for each parameter of the model; `lora` a small part of that.',
    values: { lora: 'a LoRA adapter; the model stays frozen', full: 'all weights of the model' },
    synonyms: { full_finetuning: 'full', full_finetune: 'full', 'full-finetune': 'full', sft: 'lora' },
    default: 'lora',
  }),
  max_seq_length: integer({
    doc: 'Longest sample in tokens; longer ones are cut.',
    effect: 'Memory of activations grows in proportion, time of attention with the square.',
    aliases: ['max_length', 'cutoff_len', 'sequence_len'],
    min: 1,
    max: 2_000_000,
    default: 2048,
    examples: [512, 1024, 2048, 4096],
  }),
  load_in_4bit: boolean({
    doc:
      'Keep the frozen linear layers in 4 bits (QLoRA: NF4, maxima in 8 bits). Models that are stored in 4 or 8 bits stay so either way. ' +
      'The Python tools have this on by default; here it is off.',
    effect: 'A quarter of the memory for the weights, slightly less exact and slower.',
    default: false,
  }),
  load_in_8bit: boolean({
    doc:
      'Keep the frozen linear layers in 8 bits: rows of int8 with their maxima, the memory of LLM.int8. bitsandbytes also multiplies in ' +
      'int8; here they are multiplied as 16-bit numbers, which is nearer to the 16-bit model.',
    effect: 'Half the memory for the weights, almost as exact, slightly slower.',
    default: false,
  }),
  output_dir: text({
    doc: 'Folder below which each run makes its own directory. A relative path is relative to the recipe.',
    default: './outputs',
    path: 'folder',
  }),
  run_name: optionalText({
    doc: 'Name of the run; part of the name of its directory. Empty: made from model and time.',
    aliases: ['project_name'],
    pattern: /^[^/\\\p{Cc}:*?"<>|]*$/u,
    expected: 'a name without slashes or any of : * ? " < > |',
    maxLength: 80,
  }),
  num_epochs: number({
    doc: 'How often the data set is gone through; may be a fraction. Not used when `max_steps` is above 0.',
    aliases: ['num_train_epochs', 'epochs'],
    min: 0,
    max: 1000,
    default: 3,
  }),
  max_steps: special(
    z
      .preprocess((value) => {
        const number = readNumber(value)
        return number === -1 ? 0 : number
      }, z.number().int().gte(0).lte(1_000_000))
      .default(0),
    {
      kind: 'integer',
      doc: 'Stop after so many optimizer steps; wins over `num_epochs`. 0 (or −1): use `num_epochs`.',
      default: 0,
      nullable: false,
      min: 0,
      max: 1_000_000,
      input: { type: 'integer', minimum: -1, maximum: 1_000_000 },
    },
  ),
  learning_rate: number({
    doc: 'Peak learning rate, typically 1e-6 to 1e-3.',
    effect: 'Too high diverges, too low learns nothing. LoRA wants about ten times the rate of full fine-tuning.',
    aliases: ['lr'],
    above: 0,
    below: 1,
    default: 2e-4,
    defaultDoc: '`0.0002`; `0.00002` with `training_type: full`',
    examples: [2e-4, 1e-4, 2e-5],
  }),
  embedding_learning_rate: optionalNumber({
    doc:
      'Learning rate of `embed_tokens` and `lm_head` when they are trained. Empty: `learning_rate`. ' +
      'A tenth of `learning_rate` is usual.',
    aliases: ['embedding_lr'],
    above: 0,
    below: 1,
    examples: [5e-5],
  }),
  batch_size: integer({
    doc: 'Samples in a batch. One optimizer step sees `batch_size` × `gradient_accumulation_steps` samples.',
    effect: 'Only the product decides what is learned; the engine splits the work as memory allows.',
    aliases: ['per_device_train_batch_size', 'train_batch_size', 'micro_batch_size'],
    min: 1,
    max: 4096,
    default: 2,
  }),
  gradient_accumulation_steps: integer({
    doc: 'Batches in one optimizer step. The loss is the mean over the trained tokens of all of them.',
    aliases: ['gradient_accumulation', 'grad_accum_steps'],
    min: 1,
    max: 4096,
    default: 4,
  }),
  per_device_eval_batch_size: integer({
    doc: 'Samples in a batch of evaluation.',
    aliases: ['eval_batch_size'],
    min: 1,
    max: 4096,
    default: 4,
  }),
  warmup_steps: integer({
    doc: 'Steps over which the learning rate rises from 0. Above 0 it wins over `warmup_ratio`.',
    min: 0,
    max: 1_000_000,
    default: 5,
    defaultDoc: '`5`; `0` when `warmup_ratio` is given or `max_steps` is not above 5',
  }),
  warmup_ratio: optionalNumber({
    doc: 'Warm-up as a share of all steps, rounded up. Used when `warmup_steps` is not given or 0.',
    min: 0,
    max: 1,
    examples: [0.03, 0.1],
  }),
  lr_scheduler_type: choice({
    doc: 'How the learning rate goes on after the warm-up.',
    values: schedulers,
    synonyms: { constant_with_warm_up: 'constant_with_warmup', cosine_annealing: 'cosine' },
    default: 'linear',
    aliases: ['lr_scheduler', 'scheduler'],
  }),
  num_cycles: optionalNumber({
    doc: 'Cycles of `cosine` (empty: 0.5, half a cosine) and restarts of `cosine_with_restarts` (empty: 1).',
    aliases: ['lr_num_cycles'],
    above: 0,
    max: 1000,
  }),
  power: number({
    doc: 'Degree of the `polynomial` schedule; 1 is a straight line.',
    aliases: ['lr_power'],
    min: 0,
    max: 100,
    default: 1,
  }),
  lr_end: number({
    doc: 'Learning rate at the end of the `polynomial` schedule; less than `learning_rate`.',
    min: 0,
    below: 1,
    default: 1e-7,
  }),
  optim: choice({
    doc: 'The optimizer.',
    effect:
      'Moments take 8 bytes for each trained parameter in 32 bits and 2 in 8 bits; that matters most with `training_type: full`.',
    values: optimizers,
    synonyms: {
      adamw: 'adamw_torch',
      adamw_hf: 'adamw_torch',
      adamw_torch_fused: 'adamw_torch',
      adamw_torch_8bit: 'adamw_8bit',
      adamw_bnb_8bit: 'adamw_8bit',
      paged_adamw: 'paged_adamw_32bit',
      lion: 'lion_32bit',
      paged_lion: 'paged_lion_32bit',
    },
    default: 'adamw_torch',
    aliases: ['optimizer'],
  }),
  weight_decay: number({ doc: 'Decoupled weight decay, typically 0 to 0.1.', min: 0, max: 10, default: 0.01 }),
  adam_beta1: number({ doc: 'Decay of the mean of the gradients.', min: 0, below: 1, default: 0.9 }),
  adam_beta2: number({ doc: 'Decay of the mean of the squared gradients.', min: 0, below: 1, default: 0.999 }),
  adam_epsilon: number({ doc: 'Added to the root of the squared gradients.', above: 0, below: 1, default: 1e-8 }),
  neftune_noise_alpha: optionalNumber({
    doc: 'NEFTune: noise on the embeddings while training, of this size. Empty or 0: none.',
    effect: 'Answers of instruction tunes get longer and often better; 5 is usual.',
    min: 0,
    max: 1000,
    examples: [5],
  }),
  max_grad_norm: number({
    doc: 'Scale the gradient down to this norm when it is longer. 0: off.',
    aliases: ['gradient_clipping', 'max_gradient_norm'],
    min: 0,
    max: 1e9,
    default: 1,
  }),
  random_seed: integer({
    doc:
      'Decides the order of the data, dropout and the start of a new adapter. ' +
      'The same seed gives the same result, bit for bit.',
    aliases: ['seed', 'random_state'],
    min: 0,
    max: 4_294_967_295,
    default: 3407,
  }),
  packing: boolean({
    doc:
      'Join short samples into rows of `max_seq_length` tokens; a batch then counts rows instead of samples. ' +
      'Samples never see each other.',
    effect: 'More tokens in each step. Padding is never computed, with packing or without.',
    aliases: ['sample_packing'],
    default: false,
  }),
  train_on_completions: boolean({
    doc: 'Learn the answers only; the prompts are read but not trained.',
    aliases: ['train_on_responses_only', 'completion_only_loss', 'assistant_only_loss'],
    default: false,
  }),
  gradient_checkpointing: choice({
    doc:
      'Recompute the activations of a layer in the backward pass instead of keeping them. ' +
      'The result is the same, bit for bit.',
    effect: 'Recomputing takes about a third more time and far less memory.',
    values: {
      auto: 'only as much as makes it fit; where that is not enough, a GPU lets layer inputs wait in memory of the host',
      none: 'keep everything',
      full: 'recompute every layer',
      offload:
        'recompute, and let every layer’s input wait in memory of the host: the longest rows; on the CPU the same as `full`',
    },
    synonyms: {
      unsloth: 'offload',
      true: 'full',
      false: 'none',
      yes: 'full',
      no: 'none',
      on: 'full',
      off: 'none',
      standard: 'full',
    },
    default: 'auto',
    aliases: ['use_gradient_checkpointing'],
  }),
  eval_steps: special(
    z
      .preprocess(
        readNumber,
        z
          .number()
          .gte(0)
          .lte(1_000_000)
          .refine((value) => value < 1 || Number.isInteger(value), 'a whole number of steps, or a share of all steps below 1'),
      )
      .default(0),
    {
      kind: 'number',
      doc: 'Evaluate every so many steps; below 1 it is a share of all steps. 0: off.',
      default: 0,
      defaultDoc: '`0`; `0.1` when there is an evaluation set',
      nullable: false,
      min: 0,
      max: 1_000_000,
      examples: [50, 0.1],
    },
  ),
  save_steps: integer({
    doc: 'Write a checkpoint to resume from every so many steps. 0: off; the result at the end is always written.',
    min: 0,
    max: 1_000_000,
    default: 0,
  }),
  save_total_limit: optionalInteger({ doc: 'Keep only so many of the latest checkpoints. Empty: all.', min: 1, max: 1_000_000 }),
  resume_from: special(
    z
      .preprocess((value) => {
        if (value === true) return 'latest'
        const word = typeof value === 'string' ? value.trim().toLowerCase() : value
        if (word === false || word === 'false' || word === 'none' || word === '') return null
        return word === 'true' || word === 'latest' ? 'latest' : value
      }, z.string().trim().min(1).max(4096).nullable())
      .default(null),
    {
      kind: 'text',
      doc: 'Go on from a checkpoint folder, or from the `latest` one below `output_dir`.',
      aliases: ['resume_from_checkpoint'],
      default: null,
      nullable: true,
      path: 'checkpoint',
      examples: ['latest'],
      input: { anyOf: [{ type: 'string' }, { type: 'boolean' }, { type: 'null' }] },
    },
  ),
  compute: choice({
    doc: 'Precision of the arithmetic. Sums, norms and the optimizer are in 32 bits always.',
    effect:
      'On a GPU 16 bits take half the memory and are many times faster. `bfloat16` is faster where the processor has it, and less exact.',
    values: {
      auto: '`float32` on the processor, `bfloat16` on a GPU (`float16` where it has none)',
      float32: 'exact',
      tfloat32:
        'as `float32`, with the model’s products on the tensor cores of a GPU from Ampere on, which round to 11 bits (TF32)',
      bfloat16: 'activations in bfloat16; on the processor rounded in matrix products only',
      float16: 'activations in float16 with a loss scale that adapts itself, for GPUs without bfloat16',
    },
    synonyms: { bf16: 'bfloat16', fp32: 'float32', float: 'float32', fp16: 'float16', half: 'float16', tf32: 'tfloat32' },
    default: 'auto',
  }),
  device: openChoice<'auto' | 'cpu' | 'cuda', `cuda:${number}`>({
    doc: 'Where to compute; `cuda:1` is the second GPU.',
    values: { auto: 'the best there is', cpu: 'the processor', cuda: 'the first NVIDIA GPU' },
    series: { name: 'cuda:N', doc: 'the GPU of this number, from 0', pattern: '^cuda:\\d{1,3}$' },
    synonyms: { gpu: 'cuda' },
    default: 'auto',
  }),
  max_memory: special(z.preprocess(readMemory, z.number().gt(0).lte(65_536).nullable()).default(null), {
    kind: 'number',
    doc:
      'The most memory of the device that a run may take: a size such as `20GiB`, or a number of GiB. Empty: what is free. ' +
      'The plan keeps below it by recomputing more, and refuses when that is not enough.',
    default: null,
    nullable: true,
    above: 0,
    max: 65_536,
    input: {
      anyOf: [
        { type: 'number', exclusiveMinimum: 0, maximum: 65_536 },
        { type: 'string', pattern: memorySize.source },
        { type: 'null' },
      ],
    },
  }),
  offload_embedding: boolean({
    doc: 'Keep the embedding in the memory of the host, locked, where the GPU reads the rows that it needs. On the processor this changes nothing.',
    effect:
      'Saves its size on the GPU at almost no cost. Where the head is tied to the embedding, the head is read from there too: see `offload_lm_head`.',
    default: false,
  }),
  offload_lm_head: boolean({
    doc: 'Keep the head (`lm_head`) in the memory of the host. On the processor this changes nothing.',
    effect:
      'The GPU copies it over its bus in each micro-step, for as long as it is needed: 20 to 40 ms for each GB. Worth it when memory is fullest in the layers, not at the loss.',
    default: false,
  }),
  threads: integer({
    doc: 'Threads to compute with. 0: one for each physical core. The result does not depend on it.',
    aliases: ['num_threads'],
    min: 0,
    max: 1024,
    default: 0,
  }),
  trust_remote_code: boolean({
    doc: 'Accepted for compatibility. Code from a model repository is never run.',
    flag: null,
    default: false,
    availability: notYet('code from model repositories is never run; remove the key'),
  }),
})
