#include "gemmIsa.inc"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__AVX512F__) && (defined(__AVX512BF16__) || defined(_MSC_VER))
#include <immintrin.h>

namespace unsloth::cpu {
namespace {

#include "gemmSimdAvx512.inc"
#include "gemmTile.inc"
#include "gemmPack.inc"
#include "gemmPairs.inc"

struct PairMath {
  static UNSLOTH_ALWAYS_INLINE __m512 multiplyAdd(__m512 a, __m512 b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

constexpr GemmKernel bfloat16 = {"avx512bf16 14x32", 14, 32, 16, 32, 1, 2, 256, packPairs<16, 1>, packPairs<32, 1>,
                                 multiplyBlock<Avx512, PairMath, 14, 2>};
constexpr GemmKernels kernels = {nullptr, &bfloat16, nullptr, nullptr};

}  // namespace

const GemmKernels* const gemmAvx512Bf16 = &kernels;

}  // namespace unsloth::cpu
#else
const unsloth::cpu::GemmKernels* const unsloth::cpu::gemmAvx512Bf16 = nullptr;
#endif
