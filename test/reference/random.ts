import { at, matrix, type Matrix } from './matrix.ts'

/** Philox4x32-10 in big integers, from the paper's description (SC'11, section 3.3). */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint]
  let [k0, k1] = key.map(BigInt) as [bigint, bigint]
  const low = 0xffffffffn
  for (let round = 0; round < 10; round++) {
    const first = 0xd2511f53n * c0
    const second = 0xcd9e8d57n * c2
    ;[c0, c1, c2, c3] = [(second >> 32n) ^ c1 ^ k0, second & low, (first >> 32n) ^ c3 ^ k1, first & low]
    k0 = (k0 + 0x9e3779b9n) & low
    k1 = (k1 + 0xbb67ae85n) & low
  }
  return [c0, c1, c2, c3].map(Number)
}

/** x·keep/(1−p) with keep from counters (sample, position, site, ⌊column/4⌋) under the key (seed, step). */
export function dropout(x: Matrix, tokenKeys: Matrix, seed: number, step: number, site: number, p: number): Matrix {
  return matrix(x.rows, x.cols, (row, c) => {
    const word = philox([at(tokenKeys, row, 0), at(tokenKeys, row, 1), site, Math.floor(c / 4)], [seed, step])[c % 4]!
    return word >= Math.floor(p * 2 ** 32) ? at(x, row, c) / (1 - p) : 0
  })
}
