#pragma once
#include "../cpu/random.h"

namespace unsloth::cuda {

/**
 * Philox4x32-10 of `blocks` counters (c0, c1, c2, first), (c0, c1, c2, first + 1) …, four words each; together, so that their
 * rounds overlap. About 20 integer operations a word.
 */
template <int blocks>
__device__ __forceinline__ void philox(uint32_t (&words)[4 * blocks], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t first,
                                       uint32_t key0, uint32_t key1) {
#pragma unroll
  for (int b = 0; b < blocks; ++b) words[4 * b] = c0, words[4 * b + 1] = c1, words[4 * b + 2] = c2, words[4 * b + 3] = first + b;
#pragma unroll
  for (int round = 0; round < cpu::philoxRounds; ++round) {
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      uint32_t* w = words + 4 * b;
      const uint64_t product0 = uint64_t{cpu::philoxMultiplier0} * w[0], product1 = uint64_t{cpu::philoxMultiplier1} * w[2];
      w[0] = static_cast<uint32_t>(product1 >> 32) ^ w[1] ^ key0;
      w[2] = static_cast<uint32_t>(product0 >> 32) ^ w[3] ^ key1;
      w[1] = static_cast<uint32_t>(product1);
      w[3] = static_cast<uint32_t>(product0);
    }
    key0 += cpu::philoxWeyl0;
    key1 += cpu::philoxWeyl1;
  }
}

}  // namespace unsloth::cuda
