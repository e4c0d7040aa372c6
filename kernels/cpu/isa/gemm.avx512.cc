#include "gemmIsa.inc"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>

namespace unsloth::cpu {
namespace {

#include "gemmSimdAvx512.inc"
#include "gemmTile.inc"
#include "gemmPack.inc"
#include "gemmDot.inc"

struct FloatMath {
  static UNSLOTH_ALWAYS_INLINE __m512 multiplyAdd(__m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }
};

constexpr GemmKernel float32 = {"avx512f 14x32",     14, 32, 16, 32, 1, 1, 256, packFloats<Avx512, 16>, packFloats<Avx512, 32>,
                                multiplyBlock<Avx512, FloatMath, 14, 2>};
constexpr GemmKernels kernels = {&float32, &float32, dotProducts<Avx512>, widenRow<Avx512>};

}  // namespace

const GemmKernels* const gemmAvx512 = &kernels;

}  // namespace unsloth::cpu
#else
const unsloth::cpu::GemmKernels* const unsloth::cpu::gemmAvx512 = nullptr;
#endif
