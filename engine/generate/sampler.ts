import { UnslothError } from '#shared/errors.ts'

/** How the next token is chosen from its logits. Names and order of application as in transformers' generation. */
export interface SamplingOptions {
  /** 0: greedy. */
  readonly temperature: number
  /** 0: no limit. */
  readonly topK: number
  /** 1: no limit. */
  readonly topP: number
  /** Least probability relative to the most probable token's; 0: no limit. */
  readonly minP: number
  /** 1: none. Divides positive and multiplies negative logits of tokens that already occur (arXiv 1909.05858). */
  readonly repetitionPenalty: number
}

export const greedy: SamplingOptions = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }

export function checkSampling(options: SamplingOptions): void {
  const rules: readonly [boolean, string][] = [
    [options.temperature >= 0 && Number.isFinite(options.temperature), 'temperature must be 0 or more'],
    [Number.isInteger(options.topK) && options.topK >= 0, 'top_k must be a whole number, 0 for no limit'],
    [options.topP > 0 && options.topP <= 1, 'top_p must be above 0 and at most 1'],
    [options.minP >= 0 && options.minP < 1, 'min_p must be at least 0 and below 1'],
    [options.repetitionPenalty > 0 && Number.isFinite(options.repetitionPenalty), 'repetition_penalty must be above 0'],
  ]
  for (const [holds, message] of rules) if (!holds) throw new UnslothError('USAGE', message)
}

/** A uniform number in [0, 1) for each (seed, step): independent of batching and of everything drawn before. */
export function uniform(seed: number, step: number): number {
  // SplitMix64 of the pair (Steele, Lea & Flood 2014), top 53 bits.
  const mask = (1n << 64n) - 1n
  let z = (BigInt(seed >>> 0) * 0x9e3779b97f4a7c15n + BigInt(step >>> 0) * 0xd1b54a32d192ed03n + 0x9e3779b97f4a7c15n) & mask
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask
  z ^= z >> 31n
  return Number(z >> 11n) / 2 ** 53
}

export function argmax(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; ++i) if (logits[i]! > logits[best]!) best = i
  return best
}

/** The next token. `seen` are the ids so far, prompt included; `draw` is uniform in [0, 1). Changes `logits`. */
export function sampleToken(logits: Float32Array, seen: Iterable<number>, options: SamplingOptions, draw: number): number {
  if (options.repetitionPenalty !== 1) {
    for (const id of new Set(seen)) {
      const value = logits[id]!
      logits[id] = value > 0 ? value / options.repetitionPenalty : value * options.repetitionPenalty
    }
  }
  if (options.temperature === 0) return argmax(logits)
  const ids = candidates(logits, options.topK)
  const top = logits[ids[0]!]!
  const weights = Float64Array.from(ids, (id) => Math.exp((logits[id]! - top) / options.temperature))
  const kept = nucleus(weights, options)
  let total = 0
  for (let i = 0; i < kept; ++i) total += weights[i]!
  let target = draw * total
  for (let i = 0; i < kept; ++i) {
    target -= weights[i]!
    if (target < 0) return ids[i]!
  }
  return ids[kept - 1]!
}

/** Ids by falling logit; with top-k only the first k. Ties: the lower id first. */
function candidates(logits: Float32Array, topK: number): Uint32Array {
  const ids = Uint32Array.from(logits.keys())
  const order = (a: number, b: number) => logits[b]! - logits[a]! || a - b
  if (topK === 0 || topK >= ids.length) return ids.sort(order)
  const threshold = Float32Array.from(logits).sort()[logits.length - topK]!
  return ids
    .filter((id) => logits[id]! >= threshold)
    .sort(order)
    .subarray(0, topK)
}

/** How many of the leading candidates remain: min-p on the top candidate, top-p keeps the first whose sum reaches p. */
function nucleus(weights: Float64Array, { topP, minP }: SamplingOptions): number {
  let kept = weights.length
  if (topP < 1) {
    const total = weights.reduce((sum, weight) => sum + weight, 0)
    let sum = 0
    kept = 0
    while (kept < weights.length && sum < topP * total) sum += weights[kept++]!
  }
  if (minP > 0) while (kept > 1 && weights[kept - 1]! < minP * weights[0]!) --kept
  return kept
}
