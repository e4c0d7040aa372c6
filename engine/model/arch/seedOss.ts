import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** Seed-OSS: Llama with biases on q, k and v. */
export const seedOss: ArchitectureFamily = {
  architectures: ['SeedOssForCausalLM'],
  models: 'Seed-OSS 36B',
  spec: (config) => ({
    ...llamaLike(config, { architecture: 'seed-oss', headDim: 128 }),
    bias: {
      qkv: config.boolean(true, 'attention_bias'),
      o: config.boolean(false, 'attention_out_bias'),
      mlp: config.boolean(false, 'mlp_bias'),
    },
  }),
}
