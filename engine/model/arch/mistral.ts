import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Mistral 7B (sliding window in v0.1), Nemo (head_dim × heads ≠ hidden_size), Small. */
export const mistral: ArchitectureFamily = {
  architectures: ['MistralForCausalLM'],
  models: 'Mistral 7B, Nemo, Small, Codestral, Zephyr',
  // A missing key means the 4096 of v0.1; an explicit null means no window.
  spec: (config) => llamaLike(config, { architecture: 'mistral', window: config.nullableNumber(4096, 'sliding_window') }),
}
