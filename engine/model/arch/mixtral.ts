import { llamaNames, type MoeSpec } from '../archSpec.ts'
import type { Config } from '../config.ts'
import type { ArchitectureFamily } from '../registry.ts'
import { llamaLike } from './common.ts'

/** The balance loss counts only when the config asks for the router's logits, as in transformers. */
export const balanceFactor = (config: Config): number =>
  config.boolean(false, 'output_router_logits') ? config.number(1e-3, 'router_aux_loss_coef') : 0

/** Mixtral: every MLP a mixture, two experts a token. */
export const mixtral: ArchitectureFamily = {
  architectures: ['MixtralForCausalLM'],
  spec: (config) => {
    const base = llamaLike(config, { architecture: 'mixtral', normEps: 1e-5, ropeTheta: 1e6, window: config.number(0, 'sliding_window') })
    const moe: MoeSpec = {
      experts: config.number(8, 'num_local_experts', 'num_experts'), choices: config.number(2, 'num_experts_per_tok'), ffn: base.ffn,
      renormalise: true, layers: base.attention.kinds.map(() => true), balance: balanceFactor(config),
    }
    const block = 'model.layers.N.block_sparse_moe'
    return {
      ...base, moe,
      names: { ...llamaNames, router: `${block}.gate`, expertGate: `${block}.experts.E.w1`, expertUp: `${block}.experts.E.w3`, expertDown: `${block}.experts.E.w2` },
    }
  },
}
