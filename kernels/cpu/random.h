#pragma once
#include <array>
#include <cstdint>

namespace unsloth::cpu {

/** Multipliers and Weyl increments of Philox4x32 (Salmon et al., SC'11, table 2 and section 3.3). */
constexpr uint32_t philoxMultiplier0 = 0xD2511F53u;
constexpr uint32_t philoxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t philoxWeyl0 = 0x9E3779B9u;
constexpr uint32_t philoxWeyl1 = 0xBB67AE85u;
constexpr int philoxRounds = 10;

/** Four uniform 32-bit words, a pure function of counter and key: Philox4x32-10. */
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < philoxRounds; ++round) {
    const uint64_t product0 = uint64_t{philoxMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{philoxMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += philoxWeyl0;
    key[1] += philoxWeyl1;
  }
  return counter;
}

}  // namespace unsloth::cpu
