import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** ERNIE 4.5: Llama with rotation of neighbouring columns. */
export const ernie45: ArchitectureFamily = {
  architectures: ['Ernie4_5ForCausalLM'],
  models: 'ERNIE 4.5 0.3B',
  spec: (config) => {
    const bias = config.boolean(false, 'use_bias')
    const base = llamaLike(config, {
      architecture: 'ernie4_5',
      normEps: 1e-5,
      ropeTheta: 5e5,
      headDim: 128,
      tied: true,
      interleavedRope: true,
    })
    return { ...base, bias: { qkv: bias, o: bias, mlp: bias } }
  },
}
