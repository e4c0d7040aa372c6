export interface AdamwSettings {
  readonly rate: number
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/** One step of torch's AdamW on one number; `t` counts from 1. Returns [p, m, v]. */
export function adamw(p: number, m: number, v: number, gradient: number, t: number, s: AdamwSettings): [number, number, number] {
  const mean = s.beta1 * m + (1 - s.beta1) * gradient
  const square = s.beta2 * v + (1 - s.beta2) * gradient ** 2
  const decayed = p - s.rate * s.weightDecay * p
  const root = Math.sqrt(square) / Math.sqrt(1 - s.beta2 ** t) + s.eps
  return [decayed - ((s.rate / (1 - s.beta1 ** t)) * mean) / root, mean, square]
}
