import * as z from 'zod'
import { notYet, runsAs } from './availability.ts'
import {
  boolean,
  choice,
  integer,
  number,
  optionalInteger,
  optionalNumber,
  optionalText,
  patterns,
  readList,
  special,
  textList,
} from './field.ts'

/** The linear layers of a decoder block that the Python tools adapt when nothing is said. */
export const defaultTargetModules = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const

const moduleName = /^[A-Za-z_][\w-]*(?:\.[\w-]+)*$/
/** A name, or what only a regular expression has. */
const nameOrPattern = /^(?:[A-Za-z_][\w-]*(?:\.[\w-]+)*|.*[\\*+?()[\]{}|^$].*)$/

export const isModuleName = (text: string): boolean => moduleName.test(text)

/** A comma-separated list of names; any other text is one regular expression. */
function readModules(value: unknown): unknown {
  const list = readList(value)
  return typeof value === 'string' &&
    Array.isArray(list) &&
    !list.every((name) => isModuleName(String(name))) &&
    nameOrPattern.test(value.trim())
    ? [value.trim()]
    : list
}

const vision = 'it concerns vision models only and is ignored; choose layers with lora.target_modules'
const visionSwitch = (what: string) =>
  boolean({
    doc: `Adapt ${what} of a vision model. Text models ignore it.`,
    default: true,
    availability: runsAs(vision, (value) => value === false),
  })

export const initMethods = {
  true: 'A from a uniform distribution, B zero: the first step starts from the base model',
  false: 'A and B both random, for tests: the first step does not start from the base model',
  gaussian: 'A from a normal distribution with deviation 1/r, B zero',
  loftq: 'from the error of 4-bit quantisation, so that model and adapter together start close to the 16-bit model',
  pissa:
    'from the principal singular vectors of the weights, which keep the rest; saved as an adapter of twice the rank for the original model',
  olora: 'from a QR decomposition',
  corda: 'from the covariance of sample data',
} as const
const initNames = ['gaussian', 'loftq', 'pissa', 'olora', 'corda'] as const

export const loraSection = z.strictObject({
  lora_r: integer({
    doc: 'Rank of the adapter: how many directions each layer may learn.',
    effect: 'Memory of adapter, gradients and optimizer grows in proportion; 8 to 64 is usual.',
    aliases: ['r', 'rank', 'lora_rank'],
    min: 1,
    max: 16384,
    default: 64,
    examples: [8, 16, 32, 64, 128],
  }),
  lora_alpha: number({
    doc: 'Strength of the adapter: its output is multiplied by alpha / r (alpha / √r with `use_rslora`).',
    aliases: ['alpha'],
    min: 1,
    max: 32768,
    default: 16,
  }),
  lora_dropout: number({
    doc: 'Share of the inputs of the adapter that are dropped while training.',
    effect: 'Above 0 the layer leaves the fused path: a little slower.',
    aliases: ['dropout'],
    min: 0,
    below: 1,
    default: 0,
  }),
  rank_pattern: patterns({
    doc: 'Other ranks for some layers, by the end of their name: `q_proj: 8`, `layers.0.mlp.down_proj: 32`. Regular expressions as in PEFT.',
    min: 1,
    max: 16384,
    whole: true,
  }),
  alpha_pattern: patterns({
    doc: 'Other alphas for some layers, by the end of their name.',
    min: 0.001,
    max: 32768,
    whole: false,
  }),
  loraplus_lr_ratio: optionalNumber({
    doc: 'LoRA+: the learning rate of the B matrices as a multiple of `learning_rate`. Empty: the same for A and B.',
    effect: '16 with a smaller `learning_rate` often learns faster.',
    above: 0,
    max: 1024,
    examples: [16],
  }),
  target_modules: special(
    z
      .preprocess(readModules, z.array(z.string().trim().regex(nameOrPattern, 'the name of a layer')).max(1024))
      .default([...defaultTargetModules]),
    {
      kind: 'list',
      doc:
        'Layers that get an adapter, by the last part of their name: a list, a comma-separated text, `all-linear`, ' +
        'or one regular expression on the whole path: `.*layers\\.[0-9]\\..*_proj`. ' +
        '`embed_tokens` and `lm_head` are trained whole (as in `modules_to_save`).',
      effect: 'Attention and MLP layers together learn best; attention alone saves memory.',
      default: [...defaultTargetModules],
      nullable: false,
      examples: ['all-linear', 'q_proj,k_proj,v_proj,o_proj'],
      input: {
        anyOf: [
          { type: 'string', examples: ['all-linear'] },
          { type: 'array', items: { type: 'string', examples: [...defaultTargetModules, 'embed_tokens', 'lm_head'] } },
          { type: 'null' },
        ],
      },
    },
  ),
  exclude_modules: special(
    z.preprocess(readModules, z.array(z.string().trim().regex(nameOrPattern, 'the name of a layer')).max(1024)).default([]),
    {
      kind: 'list',
      doc: 'Layers that get no adapter though `target_modules` names them: by the last parts of their names, or one regular expression on the whole path.',
      default: [],
      nullable: false,
      examples: ['layers.0.mlp.down_proj'],
      input: { anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'string' } }, { type: 'null' }] },
    },
  ),
  target_parameters: textList({
    doc:
      'Experts of a mixture that get an adapter, by the end of their name: `mlp.experts.gate_up_proj`, `mlp.experts.down_proj`. ' +
      'Empty: they follow `gate_proj`, `up_proj` and `down_proj` in `target_modules`.',
    effect: 'Each expert gets matrices of its own: memory grows with their number.',
    pattern: moduleName,
    expected: 'the name of a parameter',
    default: [],
  }),
  modules_to_save: textList({
    doc:
      'Layers trained whole and saved with the adapter: `embed_tokens`, `lm_head`. ' +
      'Needed to teach new tokens or a new language.',
    effect: 'Costs four times the size of the layer in 32 bits (weights, gradients, two moments).',
    pattern: /^(?:embed_tokens|lm_head)$/,
    expected: 'embed_tokens or lm_head',
    default: [],
  }),
  use_rslora: boolean({
    doc: 'Rank-stabilised LoRA: scale by alpha / √r instead of alpha / r, so that high ranks keep learning.',
    default: false,
  }),
  init_lora_weights: special(
    z
      .preprocess(
        (value) => {
          const word = typeof value === 'string' ? value.trim().toLowerCase() : value
          // PEFT's name for PiSSA by so many rounds of iteration, which is how it is always found here.
          if (typeof word === 'string' && /^pissa_niter_\d+$/.test(word)) return 'pissa'
          return word === 'true' || word === 'default' ? true : word === 'false' ? false : word
        },
        z.union([z.boolean(), z.enum(initNames)]),
      )
      .default(true),
    {
      kind: 'choice',
      doc: 'How a new adapter starts.',
      values: initMethods,
      default: true,
      nullable: false,
      input: { enum: [true, false, ...initNames] },
      availability: notYet('olora and corda are not available yet; use pissa', (value) => value === 'olora' || value === 'corda'),
    },
  ),
  init_adapter: optionalText({
    doc: 'Start from the weights of this adapter folder instead of a new adapter. Rank, alpha and layers must be the same.',
    aliases: ['adapter', 'adapter_path'],
    path: 'folder',
  }),
  bias: choice({
    doc: 'Which biases to train along. They are saved with the adapter.',
    values: { none: 'none', all: 'all biases', lora_only: 'the biases of adapted layers' },
    default: 'none',
  }),
  layers_to_transform: special(
    z
      .preprocess(
        (value) => {
          const list = typeof value === 'number' ? [value] : typeof value === 'string' ? readList(value) : value
          if (!Array.isArray(list)) return value
          if (list.length === 0) return null
          return list.map((item: unknown) => (typeof item === 'string' && /^\d+$/.test(item) ? Number(item) : item))
        },
        z.array(z.number().int().gte(0).lte(100_000)).max(100_000).nullable(),
      )
      .default(null),
    {
      kind: 'list',
      doc: 'Numbers of the decoder layers that get an adapter, from 0. Empty: all.',
      default: null,
      nullable: true,
      min: 0,
      input: {
        anyOf: [
          { type: 'array', items: { type: 'integer', minimum: 0 } },
          { type: 'integer', minimum: 0 },
          { type: 'string' },
          { type: 'null' },
        ],
      },
    },
  ),
  layers_pattern: textList({
    doc: 'What stands before the number of a layer in the paths that `layers_to_transform` counts: `layers`, `h`. Regular expressions as in PEFT. Empty: anything.',
    default: [],
  }),
  finetune_last_n_layers: optionalInteger({
    doc: 'Adapt only the last so many decoder layers. Use this or `layers_to_transform`.',
    min: 1,
    max: 100_000,
  }),
  use_dora: boolean({
    doc: 'Weight-decomposed LoRA (DoRA): learn the length of each row apart from its direction. Not with adapters on experts.',
    effect:
      'Often learns better at a small `lora_r`. A little slower, and the products of adapted layers are kept beside their scaled values.',
    aliases: ['dora'],
    default: false,
  }),
  use_loftq: boolean({
    doc: 'The same as `init_lora_weights: loftq`: start the adapter from the error of 4-bit quantisation. Needs `load_in_4bit` and a 16-bit model.',
    default: false,
  }),
  vision_all_linear: boolean({
    doc: 'Adapt every linear layer of a vision model. Text models ignore it.',
    default: false,
    availability: runsAs(vision),
  }),
  finetune_vision_layers: boolean({ doc: 'Adapt the vision tower of a vision model. Text models ignore it.', default: true }),
  finetune_language_layers: visionSwitch('the language layers'),
  finetune_attention_modules: visionSwitch('the attention layers'),
  finetune_mlp_modules: visionSwitch('the MLP layers'),
})
