import { paddedCapacity } from '../graph/padding.ts'
import type { PackedTokens } from './stepRunner.ts'

function extend<T extends Int32Array | Float32Array>(values: T, length: number, value: number): T {
  if (values.length === length) return values
  const longer = new (values.constructor as new (length: number) => T)(length)
  longer.set(values)
  return longer.fill(value, values.length) as T
}

/**
 * Rounds the rows of a micro-step up to what a device's kernels are launched for. Padding tokens are one sequence at the end:
 * token 0 at positions from 0 on. Padding labelled rows have index −1, label 0 and weight 0; further padding sequences are empty.
 * The results of real rows stay the same, and padding adds exactly 0 to every gradient.
 */
export function padStep(step: PackedTokens, rowMultiple: number): PackedTokens {
  if (rowMultiple === 1) return step
  const live = step.ids.length
  const { tokens, labelled, sequences } = paddedCapacity(
    { tokens: live, labelled: step.labelIndex.length, sequences: step.kvLength.length },
    rowMultiple,
  )
  const padding = tokens - live
  const kvStart = extend(step.kvStart, sequences, live)
  const kvLength = extend(step.kvLength, sequences, 0)
  const qStart = extend(step.qStart, sequences + 1, tokens)
  if (padding > 0) kvLength[step.kvLength.length] = padding
  const positions = extend(step.positions, tokens, 0)
  for (let at = live; at < tokens; ++at) positions[at] = at - live
  return {
    ...step,
    ids: extend(step.ids, tokens, 0),
    positions,
    qStart,
    kvStart,
    kvLength,
    labelIndex: extend(step.labelIndex, labelled, -1),
    ...(step.labels && { labels: extend(step.labels, labelled, 0) }),
    ...(step.weights && { weights: extend(step.weights, labelled, 0) }),
    ...(step.tokenKeys && { tokenKeys: extend(step.tokenKeys, 2 * tokens, 0) }),
    ...(step.ropeLength && { ropeLength: extend(step.ropeLength, sequences, 1) }),
  }
}
