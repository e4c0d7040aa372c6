#include "gemmIsa.inc"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__AVX2__)
#include <immintrin.h>

namespace unsloth::cpu {
namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int lanes = 8;
  static constexpr int dotColumns = 2;

  static UNSLOTH_ALWAYS_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static UNSLOTH_ALWAYS_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static UNSLOTH_ALWAYS_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
  static UNSLOTH_ALWAYS_INLINE Vec splatWord(const float* p) { return _mm256_broadcast_ss(p); }
  static UNSLOTH_ALWAYS_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static UNSLOTH_ALWAYS_INLINE Vec loadPart(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
  static UNSLOTH_ALWAYS_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static UNSLOTH_ALWAYS_INLINE void storePart(float* p, Vec v, int count) { _mm256_maskstore_ps(p, first(count), v); }
  static UNSLOTH_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static UNSLOTH_ALWAYS_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static UNSLOTH_ALWAYS_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static UNSLOTH_ALWAYS_INLINE float sum(Vec v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static UNSLOTH_ALWAYS_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE Vec fromHalf(__m128i bits) {
    if constexpr (dtype == DType::BF16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    return _mm256_cvtph_ps(bits);
  }
  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE Vec widen(const void* p, int64_t at) {
    if constexpr (dtype == DType::F32) return load(static_cast<const float*>(p) + at);
    return fromHalf<dtype>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at)));
  }
  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE Vec widenPart(const void* p, int64_t at, int count) {
    if constexpr (dtype == DType::F32) return loadPart(static_cast<const float*>(p) + at, count);
    alignas(16) uint16_t bits[8] = {};
    for (int i = 0; i < count && i < 8; ++i) bits[i] = (static_cast<const uint16_t*>(p) + at)[i];
    return fromHalf<dtype>(_mm_load_si128(reinterpret_cast<const __m128i*>(bits)));
  }
  /** Round to nearest, ties to even; NaN becomes quiet. */
  static UNSLOTH_ALWAYS_INLINE Vec roundToBf16(Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i value = _mm256_blendv_epi8(sum, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    return _mm256_castsi256_ps(_mm256_and_si256(value, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static UNSLOTH_ALWAYS_INLINE void transpose(Vec (&v)[8]) {
    Vec t[8];
    UNSLOTH_UNROLL for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    UNSLOTH_UNROLL for (int i = 0; i < 8; i += 4) {  // v[i + j]: column j of each 4x4 block, rows i … i+3
      v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNSLOTH_UNROLL for (int j = 0; j < 4; ++j) {
      const Vec low = v[j], high = v[j + 4];
      v[j] = _mm256_permute2f128_ps(low, high, 0x20);
      v[j + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
  }
};

struct FloatMath {
  static UNSLOTH_ALWAYS_INLINE __m256 multiplyAdd(__m256 a, __m256 b, __m256 sum) { return _mm256_fmadd_ps(a, b, sum); }
};

#include "gemmTile.inc"
#include "gemmPack.inc"
#include "gemmDot.inc"

constexpr GemmKernel float32 = {"avx2 6x16",         6, 16, 8, 16, 1, 1, 256, packFloats<Avx2, 8>, packFloats<Avx2, 16>,
                                multiplyBlock<Avx2, FloatMath, 6, 2>};
constexpr GemmKernels kernels = {&float32, &float32, dotProducts<Avx2>, widenRow<Avx2>};

}  // namespace

const GemmKernels* const gemmAvx2 = &kernels;

}  // namespace unsloth::cpu
#else
const unsloth::cpu::GemmKernels* const unsloth::cpu::gemmAvx2 = nullptr;
#endif
