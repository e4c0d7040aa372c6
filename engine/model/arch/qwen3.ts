import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Qwen3: RMS norm on each head of q and k before rotation. */
export const qwen3: ArchitectureFamily = {
  architectures: ['Qwen3ForCausalLM'],
  models: 'Qwen 3 from 0.6B to 32B',
  spec: (config) => {
    const from = config.number(28, 'max_window_layers')
    const window = config.boolean(false, 'use_sliding_window') ? config.number(4096, 'sliding_window') : 0
    const base = llamaLike(config, { architecture: 'qwen3', headDim: 128, window, windowLayers: (layer) => layer >= from })
    const attention = config.boolean(false, 'attention_bias')
    return {
      ...base,
      bias: { qkv: attention, o: attention, mlp: false },
      qkNorm: { ...base.norm, over: 'head', weightPerHead: false },
    }
  },
}
