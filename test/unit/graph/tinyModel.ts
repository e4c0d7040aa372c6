import { whole, type Tensor } from '../../../engine/graph/graph.ts'
import type { DecoderWeights } from '../../../engine/model/decoder.ts'
import { archSpec } from '../../../engine/model/registry.ts'
import { weightTable, type WeightEntry } from '../../../engine/model/weightTable.ts'
import { loraModules } from '../../../engine/patch/lora.ts'
import { parameterLayout } from '../../../engine/patch/parameters.ts'

export const tinyConfig = {
  architectures: ['LlamaForCausalLM'],
  hidden_size: 8,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  intermediate_size: 16,
  vocab_size: 32,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
}

export const tinyMixture = {
  ...tinyConfig,
  architectures: ['MixtralForCausalLM'],
  num_hidden_layers: 1,
  num_local_experts: 4,
  num_experts_per_tok: 2,
  sliding_window: null,
}

/** Frozen weights one after another, as a loader would place them. */
function frozen(entries: readonly WeightEntry[]): Map<string, Tensor> {
  let offset = 0
  return new Map(
    entries.map((entry) => {
      const tensor = whole({
        name: entry.id,
        arena: 'weights',
        offset,
        dtype: 'bf16',
        rows: entry.rows,
        cols: entry.cols,
        rule: 'fixed',
        keep: 'residual',
        layer: entry.layer,
      })
      offset += Math.ceil((entry.rows * entry.cols * 2) / 256) * 256
      return [entry.id, tensor]
    }),
  )
}

/** A model described by its config alone, with LoRA (or DoRA) of rank 2 on the named projections, or trained whole. */
export function tinyModel(config: Record<string, unknown>, train: readonly string[] | 'full', dropout = 0, dora = false) {
  const spec = archSpec(config)
  const entries = weightTable(spec)
  const modules = train === 'full' ? [] : loraModules(entries, { r: 2, alpha: 4, dropout, targets: train, rslora: false, dora })
  const layout = parameterLayout(train === 'full' ? entries : [], modules, false)
  const base = frozen(entries)
  const weights: DecoderWeights = {
    weight: (id) => layout.weights.get(id) ?? { value: base.get(id)! },
    lora: (id) => layout.lora.get(id),
  }
  return { spec, weights, layout, modules }
}
