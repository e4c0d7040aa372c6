import { argmax } from '../generate/sampler.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { allLogits } from './passes.ts'

/**
 * Greedy tokens as the reference makes them for frequencies that depend on length. HF transformers decides these anew at every
 * token, from the length reached (our generation decides once, so that cached keys stay valid):
 * - dynamic: the whole text is run again for every token.
 * - longrope: when a text outgrows the original context, `Phi3ForCausalLM.prepare_inputs_for_generation` (5.17) drops a cache that
 *   is not longer than that context, but hands on only the last token; so from there on each token follows from the one before.
 */
export async function referenceGreedy(model: LoadedModel, prompt: Int32Array, total: number): Promise<Int32Array> {
  const { full } = model.spec.rope
  const ids = [...prompt]
  let cached = 0
  while (ids.length < total) {
    const dropped = cached > 0 && full.table(cached).key === 'short' && full.table(ids.length).key === 'long'
    const seen = dropped ? ids.slice(-1) : ids
    const logits = await allLogits(model, model.base, [Int32Array.from(seen)])
    cached = seen.length
    ids.push(argmax(logits.subarray(-model.spec.vocabulary)))
  }
  return Int32Array.from(ids)
}
