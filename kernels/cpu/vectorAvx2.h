#pragma once
#include <immintrin.h>

UNSLOTH_ISA_NAMESPACE_BEGIN

struct Vec {
  __m256 v;
};
struct Mask {
  __m256 m;
};
constexpr int lanes = 8;
/** Rows of accumulators that a register tile of two vectors' width can hold. */
constexpr int tileRows = 4;

UNSLOTH_INLINE __m256i firstLanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

UNSLOTH_INLINE Vec set(float x) { return {_mm256_set1_ps(x)}; }
UNSLOTH_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
UNSLOTH_INLINE Vec loadPart(const float* p, int count) { return {_mm256_maskload_ps(p, firstLanes(count))}; }
UNSLOTH_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
UNSLOTH_INLINE void storePart(float* p, Vec a, int count) { _mm256_maskstore_ps(p, firstLanes(count), a.v); }

UNSLOTH_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
/** a·b + c */
UNSLOTH_INLINE Vec mulAdd(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
/** c − a·b */
UNSLOTH_INLINE Vec mulSub(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
UNSLOTH_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
UNSLOTH_INLINE Vec squareRoot(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
UNSLOTH_INLINE Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
UNSLOTH_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
UNSLOTH_INLINE Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
UNSLOTH_INLINE Vec roundToEven(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/** a·2ⁿ for whole n in −252 … 254, with gradual underflow. */
UNSLOTH_INLINE Vec scaleByPowerOfTwo(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, first), second)};
}
UNSLOTH_INLINE float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
UNSLOTH_INLINE float largest(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

UNSLOTH_INLINE Vec loadBf16(const uint16_t* p) {
  return {
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16))};
}
UNSLOTH_INLINE Vec loadF16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
/** Round to nearest even; NaN stays NaN. */
UNSLOTH_INLINE void storeBf16(uint16_t* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i wide = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
UNSLOTH_INLINE void storeF16(uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/** Writes columns 0…3 of `lanes` rows of src as four vectors: dst[c·ldDst + row]. */
UNSLOTH_INLINE void transposeFour(const float* src, ptrdiff_t ld, float* dst, ptrdiff_t ldDst) {
  __m256 r[4];
  for (int k = 0; k < 4; ++k)
    r[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(src + k * ld)), _mm_loadu_ps(src + (k + 4) * ld), 1);
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpacklo_ps(r[2], r[3]);
  const __m256 c = _mm256_unpackhi_ps(r[0], r[1]), d = _mm256_unpackhi_ps(r[2], r[3]);
  _mm256_storeu_ps(dst, _mm256_shuffle_ps(a, b, 0x44));
  _mm256_storeu_ps(dst + ldDst, _mm256_shuffle_ps(a, b, 0xee));
  _mm256_storeu_ps(dst + 2 * ldDst, _mm256_shuffle_ps(c, d, 0x44));
  _mm256_storeu_ps(dst + 3 * ldDst, _mm256_shuffle_ps(c, d, 0xee));
}

UNSLOTH_ISA_NAMESPACE_END
