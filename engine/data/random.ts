const rotateLeft = (value: number, bits: number): number => (value << bits) | (value >>> (32 - bits))
const mask = 0xffff_ffff_ffff_ffffn

/** SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): spreads a few seeds over any number of 64-bit words. */
function* splitMix64(seed: bigint): Generator<bigint, never> {
  for (let state = seed & mask; ;) {
    state = (state + 0x9e37_79b9_7f4a_7c15n) & mask
    let z = state
    z = ((z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n) & mask
    z = ((z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn) & mask
    yield z ^ (z >> 31n)
  }
}

/**
 * xoshiro128** 1.1 (Blackman and Vigna, public domain), its state filled by SplitMix64 from (seed, stream).
 * The same pair gives the same numbers on every machine; streams of one seed are independent.
 */
export class Xoshiro128 {
  private readonly state: Int32Array

  /** `seed` and `stream` are whole numbers from 0 to 2^32 − 1. */
  constructor(seed: number, stream = 0) {
    const words = splitMix64((BigInt(stream >>> 0) << 32n) | BigInt(seed >>> 0))
    const [a, b] = [words.next().value, words.next().value]
    this.state = Int32Array.of(Number(a & 0xffff_ffffn), Number(a >> 32n), Number(b & 0xffff_ffffn), Number(b >> 32n))
  }

  /** The next 32 random bits as a number from 0 to 2^32 − 1. */
  next(): number {
    const s = this.state
    const result = Math.imul(rotateLeft(Math.imul(s[1]!, 5), 7), 9) >>> 0
    const t = s[1]! << 9
    s[2]! ^= s[0]!
    s[3]! ^= s[1]!
    s[1]! ^= s[2]!
    s[0]! ^= s[3]!
    s[2]! ^= t
    s[3] = rotateLeft(s[3]!, 11)
    return result
  }

  /** A whole number from 0 to bound − 1, every one equally likely; bound ≤ 2^32. */
  below(bound: number): number {
    const limit = 2 ** 32 - (2 ** 32 % bound)
    for (;;) {
      const bits = this.next()
      if (bits < limit) return bits % bound
    }
  }
}

/** 0 … count−1 in random order (Fisher and Yates, from the end), decided by (seed, stream). */
export function permutation(count: number, seed: number, stream = 0): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, index) => index)
  const random = new Xoshiro128(seed, stream)
  for (let last = count - 1; last > 0; last--) {
    const other = random.below(last + 1)
    const kept = order[last]!
    order[last] = order[other]!
    order[other] = kept
  }
  return order
}
