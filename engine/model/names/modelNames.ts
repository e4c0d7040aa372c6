/**
 * Repositories that hold the same model in 16 and in 4 bits, by family. `{}` stands for a size or variant. In `dynamic` models some
 * layers stay in 16 bits: their 4-bit repository ends in `-unsloth-bnb-4bit`, an older one with all layers in 4 bits in `-bnb-4bit`.
 * `plain` models have only the latter. `only4` models have no 16-bit copy at unsloth, so the official one is it.
 */
export interface NameFamily {
  /** Repository of the makers. */
  readonly official: string
  /** Name at unsloth; the same pattern's last part when absent. */
  readonly unsloth?: string
  readonly dynamic?: readonly string[]
  readonly plain?: readonly string[]
  readonly only4?: readonly string[]
}

export const nameFamilies: readonly NameFamily[] = [
  // Llama
  { official: 'meta-llama/Llama-2-{}-hf', unsloth: 'llama-2-{}', plain: ['7b', '13b'] },
  { official: 'meta-llama/Llama-2-{}-chat-hf', unsloth: 'llama-2-{}-chat', plain: ['7b'] },
  { official: 'meta-llama/Meta-Llama-3-{}', unsloth: 'llama-3-{}', plain: ['8B', '8B-Instruct'], only4: ['70B', '70B-Instruct'] },
  {
    official: 'meta-llama/Meta-Llama-3.1-{}',
    dynamic: ['8B', '8B-Instruct'],
    plain: ['70B', '70B-Instruct'],
    only4: ['405B', '405B-Instruct'],
  },
  { official: 'meta-llama/Llama-3.1-{}', dynamic: ['8B', '8B-Instruct'] },
  { official: 'meta-llama/Llama-3.2-{}', dynamic: ['1B', '1B-Instruct', '3B', '3B-Instruct'] },
  { official: 'meta-llama/Llama-3.3-70B-Instruct', dynamic: [''] },
  { official: 'codellama/CodeLlama-{}-hf', unsloth: 'codellama-{}', plain: ['7b'], only4: ['13b', '34b'] },
  { official: 'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T', unsloth: 'tinyllama', plain: [''] },
  { official: 'TinyLlama/TinyLlama-1.1B-Chat-v1.0', unsloth: 'tinyllama-chat', plain: [''] },
  { official: '01-ai/Yi-{}', unsloth: 'yi-{}', plain: ['6B'] },
  { official: 'upstage/SOLAR-10.7B-v1.0', unsloth: 'solar-10.7b', only4: [''] },
  { official: 'nvidia/Llama-3.1-Nemotron-70B-Instruct-HF', unsloth: 'Llama-3.1-Nemotron-70B-Instruct', plain: [''] },
  { official: 'NousResearch/Hermes-3-Llama-3.1-{}', plain: ['8B', '70B'], only4: ['405B'] },
  { official: 'allenai/Llama-3.1-Tulu-3-{}', plain: ['8B', '70B'] },
  { official: 'akjindal53244/Llama-3.1-Storm-8B', plain: [''] },
  {
    official: 'deepseek-ai/DeepSeek-R1-Distill-{}',
    dynamic: ['Llama-8B', 'Qwen-1.5B', 'Qwen-7B', 'Qwen-14B'],
    plain: ['Llama-70B', 'Qwen-32B'],
  },
  { official: 'HuggingFaceTB/SmolLM-{}', plain: ['135M', '135M-Instruct', '360M', '360M-Instruct', '1.7B', '1.7B-Instruct'] },
  // Mistral
  { official: 'mistralai/Mistral-7B-v0.1', unsloth: 'mistral-7b', plain: [''] },
  { official: 'mistralai/Mistral-7B-v0.3', unsloth: 'mistral-7b-v0.3', plain: [''] },
  { official: 'alpindale/Mistral-7B-v0.2-hf', unsloth: 'mistral-7b-v0.2', plain: [''] },
  { official: 'mistralai/Mistral-7B-Instruct-{}', unsloth: 'mistral-7b-instruct-{}', plain: ['v0.1', 'v0.2', 'v0.3'] },
  { official: 'mistralai/Mistral-Nemo-{}-2407', plain: ['Base', 'Instruct'] },
  { official: 'mistralai/Mistral-Small-Instruct-2409', plain: [''] },
  { official: 'mistralai/Mistral-Large-Instruct-2407', only4: [''] },
  { official: 'mistralai/Mistral-Small-24B-{}-2501', dynamic: ['Base', 'Instruct'] },
  { official: 'mistralai/Devstral-Small-{}', dynamic: ['2505', '2507'] },
  { official: 'mistralai/Magistral-Small-{}', dynamic: ['2506', '2507', '2509'] },
  { official: 'HuggingFaceH4/mistral-7b-sft-beta', unsloth: 'zephyr-sft', plain: [''] },
  { official: 'NousResearch/Hermes-2-Pro-Mistral-7B', plain: [''] },
  { official: 'teknium/OpenHermes-2.5-Mistral-7B', plain: [''] },
  { official: 'mistralai/Mixtral-8x7B-{}', dynamic: ['v0.1', 'Instruct-v0.1'] },
  // Qwen
  {
    official: 'Qwen/Qwen2-{}',
    plain: ['0.5B', '0.5B-Instruct', '1.5B', '1.5B-Instruct', '7B', '7B-Instruct'],
    only4: ['70B', '70B-Instruct'],
  },
  {
    official: 'Qwen/Qwen2.5-{}',
    dynamic: ['0.5B', '0.5B-Instruct', '1.5B', '1.5B-Instruct', '3B', '3B-Instruct', '7B', '7B-Instruct', '14B', '14B-Instruct'],
    plain: ['32B', '32B-Instruct', '72B', '72B-Instruct'],
  },
  { official: 'Qwen/Qwen2.5-Math-{}', plain: ['1.5B', '1.5B-Instruct', '7B', '7B-Instruct', '72B', '72B-Instruct'] },
  {
    official: 'Qwen/Qwen2.5-Coder-{}',
    plain: [
      '0.5B',
      '0.5B-Instruct',
      '1.5B',
      '1.5B-Instruct',
      '3B',
      '3B-Instruct',
      '7B',
      '7B-Instruct',
      '14B',
      '14B-Instruct',
      '32B',
      '32B-Instruct',
    ],
  },
  { official: 'Qwen/QwQ-{}', dynamic: ['32B'], plain: ['32B-Preview'] },
  {
    official: 'Qwen/Qwen3-{}',
    dynamic: [
      '0.6B',
      '0.6B-Base',
      '1.7B',
      '1.7B-Base',
      '4B',
      '4B-Base',
      '4B-Instruct-2507',
      '4B-Thinking-2507',
      '8B',
      '8B-Base',
      '14B',
      '14B-Base',
      '32B',
      '30B-A3B',
    ],
    plain: ['30B-A3B-Base'],
  },
  { official: 'deepseek-ai/DeepSeek-R1-0528-Qwen3-8B', dynamic: [''] },
  { official: 'open-thoughts/OpenThinker-7B', dynamic: [''] },
  // Gemma
  {
    official: 'google/gemma-{}',
    plain: ['2b', '2b-it', '7b', '7b-it', '1.1-2b-it', '1.1-7b-it', '2-2b', '2-2b-it', '2-9b', '2-9b-it', '2-27b', '2-27b-it'],
  },
  { official: 'google/codegemma-{}', plain: ['2b', '7b', '7b-it'] },
  {
    official: 'google/gemma-3-{}',
    dynamic: ['270m', '270m-it', '1b-pt', '1b-it', '4b-pt', '4b-it', '12b-pt', '12b-it', '27b-pt', '27b-it'],
  },
  { official: 'google/functiongemma-270m-it', dynamic: [''] },
  { official: 'google/medgemma-{}', dynamic: ['4b-it', '27b-text-it'] },
  // Phi
  { official: 'microsoft/Phi-3-{}-4k-instruct', plain: ['mini', 'medium'] },
  { official: 'microsoft/Phi-3.5-mini-instruct', plain: [''] },
  { official: 'microsoft/phi-4{}', dynamic: ['', '-reasoning', '-reasoning-plus', '-mini-reasoning'] },
  { official: 'microsoft/Phi-4-mini-instruct', dynamic: [''] },
  // Cohere, Granite, OLMo, gpt-oss
  { official: 'CohereForAI/c4ai-command-{}-08-2024', only4: ['r', 'r-plus'] },
  { official: 'CohereForAI/c4ai-command-a-03-2025', dynamic: [''] },
  { official: 'ibm-granite/granite-3.2-{}-instruct', dynamic: ['2b', '8b'] },
  { official: 'ibm-granite/granite-4.0-{}', dynamic: ['350m', '350m-base', '1b', '1b-base', 'micro', 'micro-base'] },
  { official: 'allenai/OLMo-2-0325-32B-Instruct', dynamic: [''] },
  { official: 'openai/gpt-oss-{}', dynamic: ['20b', '120b'] },
]
