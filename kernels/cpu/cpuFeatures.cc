#include "cpuFeatures.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../core/error.h"

#if defined(__x86_64__) || defined(_M_X64)
#define UNSLOTH_X86_64
#ifdef _MSC_VER
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace unsloth::cpu {
namespace {

#ifdef UNSLOTH_X86_64

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#ifdef _MSC_VER
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
  std::memcpy(&r, values, sizeof r);
#else
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
  return r;
}

/** XCR0: the register states that the operating system saves. */
uint64_t savedStates() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

/** Linux hands out the 8 KB of tile state per thread only to processes that ask. */
bool mayUseTiles() {
#ifdef __linux__
  constexpr long requestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, requestPermission, tileData) == 0;
#else
  return false;
#endif
}

constexpr bool bit(uint32_t word, int position) { return ((word >> position) & 1u) != 0; }

CpuFeatures detect(int cap) {
  CpuFeatures features;
  const uint32_t leaves = cpuid(0, 0).a;
  if (leaves < 7) return features;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
  constexpr int osxsave = 27, avx = 28, fma = 12, f16c = 29;
  if (!bit(one.c, osxsave)) return features;
  const uint64_t states = savedStates();
  constexpr uint64_t ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
  features.avx2 = cap >= 1 && (states & ymm) == ymm && bit(one.c, avx) && bit(one.c, fma) && bit(one.c, f16c) && bit(seven.b, 5);
  const bool foundation = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
  features.avx512 = cap >= 2 && features.avx2 && (states & zmm) == zmm && foundation;
  features.avx512bf16 = cap >= 3 && features.avx512 && seven.a >= 1 && bit(cpuid(7, 1).a, 5);
  const bool tileUnits = bit(seven.d, 22) && bit(seven.d, 24);
  features.amx = cap >= 4 && features.avx512bf16 && (states & tiles) == tiles && tileUnits && mayUseTiles();
  return features;
}

#else

CpuFeatures detect(int) { return {}; }

#endif

int capFromEnvironment() {
  const char* value = std::getenv("UNSLOTH_CPU_ISA");
  if (value == nullptr || *value == '\0') return 4;
  const char* const names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
  for (int i = 0; i < 5; ++i)
    if (std::string(value) == names[i]) return i;
  fail(std::string("UNSLOTH_CPU_ISA is \"") + value + "\"; it can be portable, avx2, avx512, avx512bf16 or amx");
}

}  // namespace

const CpuFeatures& cpuFeatures() {
  static const CpuFeatures features = detect(capFromEnvironment());
  return features;
}

}  // namespace unsloth::cpu
