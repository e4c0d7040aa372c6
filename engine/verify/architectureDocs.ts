import { cpuTarget } from '../graph/target.ts'
import { formatBytes } from '#shared/units.ts'
import { whole, type Tensor } from '../graph/graph.ts'
import type { Proof } from '../model/proof.ts'
import { archSpec, families, type ArchitectureFamily } from '../model/registry.ts'
import { trainingPlan } from '../model/stepGraph.ts'
import { weightTable } from '../model/weightTable.ts'
import { loraModules } from '../patch/lora.ts'
import { parameterLayout } from '../patch/parameters.ts'

/** What people ask for and this does not have, with the reason. */
const unsupported: readonly (readonly [string, string])[] = [
  [
    'gpt-oss',
    'attention sinks and the clamped activation of its experts need kernels of their own, and its files hold experts in MXFP4',
  ],
  [
    'DeepSeek-V2 and V3',
    'latent attention has heads of different width for keys and values, which the attention kernel does not take',
  ],
  ['InternLM2', 'transformers does not have it, so that there is no reference'],
  [
    'Gemma 3 from 4B on',
    'published as a vision model (`Gemma3ForConditionalGeneration`); its text tower alone can be used when saved as `Gemma3ForCausalLM`',
  ],
  [
    'Falcon with ALiBi (RefinedWeb), StableLM 2 12B, OLMo 7B of April 2024 (`clip_qkv`)',
    'refused with a message that names the key',
  ],
]

const scientific = (value: number): string => value.toExponential(1).replace('e-', 'e−')

function familyRow(family: ArchitectureFamily, proofs: readonly Proof[]): string {
  const mine = proofs.filter(({ architecture }) => family.architectures.includes(architecture))
  const worst = (kind: 'logits' | 'gradients' | 'training') =>
    mine.length === 0 ? '–' : scientific(Math.max(...mine.map((proof) => proof[kind])))
  const greedy = mine.length > 0 && mine.every((proof) => proof.greedy) ? 'equal' : '–'
  const cells = [
    family.architectures.map((name) => `\`${name}\``).join(', '),
    family.models,
    mine.map((proof) => proof.case).join(', ') || 'none',
    worst('logits'),
    worst('gradients'),
    worst('training'),
    greedy,
  ]
  return `| ${cells.join(' | ')} |`
}

/** Llama 3.2 1B: the shape whose memory the document shows. */
const example = {
  architectures: ['LlamaForCausalLM'],
  hidden_size: 2048,
  num_hidden_layers: 16,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  head_dim: 64,
  intermediate_size: 8192,
  vocab_size: 128_256,
  max_position_embeddings: 131_072,
  tie_word_embeddings: true,
}

/** Activation bytes of one training micro-step with a single sequence of so many tokens, attention recomputed with its layer. */
export function activationBytes(tokens: number): number {
  const spec = archSpec(example)
  const entries = weightTable(spec)
  const modules = loraModules(entries, { r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false })
  const { lora } = parameterLayout([], modules, false)
  const frozen = new Map<string, Tensor>(
    entries.map((entry) => [
      entry.id,
      whole({
        name: entry.id,
        arena: 'weights',
        offset: 0,
        dtype: 'bf16',
        rows: entry.rows,
        cols: entry.cols,
        rule: 'fixed',
        keep: 'residual',
        layer: entry.layer,
      }),
    ]),
  )
  const weights = {
    weight: (id: string) => ({ value: frozen.get(id === 'head' ? 'embedding' : id)! }),
    lora: (id: string) => lora.get(id),
  }
  return trainingPlan({
    spec,
    weights,
    capacity: { tokens, labelled: tokens, sequences: 1 },
    target: cpuTarget('bfloat16'),
    dropout: false,
    recompute: () => 'layer',
  }).plan.activationBytes
}

function memoryTable(): string[] {
  return [1024, 4096, 16_384, 65_536].map((tokens) => {
    const heads = example.num_attention_heads
    return `| ${tokens} | ${formatBytes(activationBytes(tokens))} | ${formatBytes(tokens * tokens)} | ${formatBytes(tokens * tokens * heads * 4)} |`
  })
}

/** The document, from the registry and from what comparing with the reference gave. */
export function architectureDocs(proofs: readonly Proof[]): string {
  return `${[
    '# Architectures',
    '',
    'Generated from the registry and `engine/model/proofs.ts` by `npm run docs`; do not edit by hand.',
    '',
    'Each case is a small model with random weights and a PEFT adapter. Hugging Face transformers and PEFT computed everything on it in',
    'float64: logits, losses, gradients of every kind of parameter, preference losses, a training of 12 steps, the merged model, greedy tokens.',
    'The numbers are the worst relative errors ‖ours − reference‖/‖reference‖ of this engine in float32 on the CPU. `npx unsloth verify`',
    'allows 1e−5 for logits and losses and 1e−4 for gradients and training. How to make a case: [test/golden](../test/golden/README.md).',
    '',
    '| architecture | models | cases | logits | gradients | training | greedy tokens |',
    '|---|---|---|---|---|---|---|',
    ...families.map((family) => familyRow(family, proofs)),
    '',
    '## Not supported',
    '',
    ...unsupported.map(([family, why]) => `- ${family}: ${why}.`),
    '',
    '## Choices where references differ',
    '',
    '- Frequencies that depend on length (dynamic NTK, longrope) are those of each sequence alone, so that packing changes nothing; generation',
    '  decides once, from the prompt and the new tokens asked for. transformers decides anew at every token. For longrope it (5.17) also drops the',
    '  cache when a text outgrows the original context and goes on from the last token alone; the check of greedy tokens repeats that, generation does not.',
    '- Gemma’s factor √hidden is rounded to bf16 only where products are computed in bf16.',
    '- Products with a router stay in float32, so that near-ties between experts do not flip.',
    '- The routers’ balance loss is trained with when the config says `output_router_logits: true`, with its `router_aux_loss_coef`; the training loss',
    '  that is shown contains it, the evaluation loss never does.',
    '- Adapters on experts have PEFT’s layout (`target_parameters`). Targets named `gate_proj`, `up_proj`, `down_proj` mean the experts too;',
    '  gate and up are one matrix there and get twice the rank, as PEFT converts such targets.',
    '- NEFTune scales its noise by the length of each sequence itself, not by the padded width of a batch.',
    '- LoRA+ gives the rate of B to all vectors, too (biases, magnitudes of DoRA), as PEFT does; `weight_decay` is that of the recipe.',
    '',
    '## Memory of attention',
    '',
    'Masks are never stored: what a token sees follows from where its sequence begins and from the window. Activations of a training step of Llama',
    '3.2 1B with LoRA grow with the number of tokens, not with its square:',
    '',
    '| tokens in one sequence | all activations | a boolean mask would be | scores of one layer would be |',
    '|---|---|---|---|',
    ...memoryTable(),
  ].join('\n')}\n`
}
