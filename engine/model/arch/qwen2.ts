import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Qwen2, 2.5, Coder, QwQ: biases on q, k and v only. */
export const qwen2: ArchitectureFamily = {
  architectures: ['Qwen2ForCausalLM'],
  models: 'Qwen 2, 2.5, Coder, Math, QwQ, DeepSeek R1 distillations',
  spec: (config) => {
    const from = config.number(28, 'max_window_layers')
    const window = config.boolean(false, 'use_sliding_window') ? config.number(4096, 'sliding_window') : 0
    return {
      ...llamaLike(config, { architecture: 'qwen2', window, windowLayers: (layer) => layer >= from }),
      bias: { qkv: true, o: false, mlp: false },
    }
  },
}
