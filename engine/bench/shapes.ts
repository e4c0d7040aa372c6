import { UnslothError } from '#shared/errors.ts'
import { archSpec } from '../model/registry.ts'
import type { HfConfig } from '../model/config.ts'
import { pieceShape, weightTable } from '../model/weightTable.ts'
import type { TensorLocation, TensorSource } from '../io/tensorSource.ts'
import type { ModelDescription } from '../runtime/patchedModel.ts'

const llama = (
  hidden: number,
  ffn: number,
  layers: number,
  heads: number,
  kvHeads: number,
  headDim: number,
  vocabulary: number,
  tied: boolean,
): HfConfig => ({
  architectures: ['LlamaForCausalLM'],
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  head_dim: headDim,
  vocab_size: vocabulary,
  tie_word_embeddings: tied,
  rms_norm_eps: 1e-5,
  rope_theta: 500_000,
  max_position_embeddings: 131_072,
})

/** Published shapes to measure on; weights are made up, so nothing has to be downloaded. */
export const benchShapes: Readonly<Record<string, HfConfig>> = {
  'llama-3.1-8b': llama(4096, 14336, 32, 32, 8, 128, 128256, false),
  'llama-3.2-3b': llama(3072, 8192, 28, 24, 8, 128, 128256, true),
  'llama-3.2-1b': llama(2048, 8192, 16, 32, 8, 64, 128256, true),
  'qwen2.5-0.5b': {
    architectures: ['Qwen2ForCausalLM'],
    hidden_size: 896,
    intermediate_size: 4864,
    num_hidden_layers: 24,
    num_attention_heads: 14,
    num_key_value_heads: 2,
    vocab_size: 151936,
    tie_word_embeddings: true,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000,
    max_position_embeddings: 32768,
  },
  stories15m: { ...llama(288, 768, 6, 6, 6, 48, 32000, true), rope_theta: 10_000 },
}

/** A model of a published shape with weights in the given type, described but not stored anywhere; `layers` shortens it. */
export function shapeModel(name: string, dtype: 'BF16' | 'F32', layers?: number): ModelDescription {
  const published = benchShapes[name]
  const config = published === undefined || layers === undefined ? published : { ...published, num_hidden_layers: layers }
  if (config === undefined)
    throw new UnslothError('USAGE', `There is no shape "${name}".`, { hint: `Shapes: ${Object.keys(benchShapes).join(', ')}.` })
  const spec = archSpec(config, name)
  const entries = weightTable(spec)
  const tensors = new Map<string, TensorLocation>()
  for (const entry of entries)
    for (const piece of entry.pieces)
      tensors.set(piece.name, { name: piece.name, path: name, dtype, shape: pieceShape(entry, piece), offset: 0, bytes: 0 })
  const source: TensorSource = { path: name, tensors, metadata: new Map(), files: [], totalBytes: 0, warnings: [] }
  return { folder: name, config, spec, entries, source, quantised: new Map(), scaled: new Map() }
}
