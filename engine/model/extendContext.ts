import type { ArchSpec, RopeSpec } from './archSpec.ts'

/**
 * The spec for sequences of up to `maxSeqLength` tokens. Beyond the model's context positions are compressed linearly (arXiv
 * 2306.15595) and a warning says so; models that scale by themselves (llama3, yarn, dynamic, longrope) keep their own way.
 */
export function extendContext(spec: ArchSpec, maxSeqLength: number): { readonly spec: ArchSpec; readonly warning?: string } {
  if (maxSeqLength <= spec.context) return { spec }
  const ratio = maxSeqLength / spec.context
  const beyond = `max_seq_length ${maxSeqLength} is beyond the ${spec.context} positions that the model was made for`
  if (spec.rope.full.scaling !== 'default' && spec.rope.full.scaling !== 'linear')
    return { spec: { ...spec, context: maxSeqLength }, warning: `${beyond}; its own ${spec.rope.full.scaling} scaling is kept.` }
  const full = compress(spec.rope.full, ratio)
  const window = spec.rope.window === spec.rope.full ? full : spec.rope.window
  return {
    spec: { ...spec, context: maxSeqLength, rope: { ...spec.rope, full, window } },
    warning: `${beyond}; positions are compressed linearly by ${ratio.toFixed(2)}.`,
  }
}

function compress(rope: RopeSpec, ratio: number): RopeSpec {
  return {
    ...rope,
    scaling: 'linear',
    table: (length) => {
      const { key, inverse, factor } = rope.table(length)
      return { key, inverse: inverse.map((value) => value / ratio), factor }
    },
  }
}
