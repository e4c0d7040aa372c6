#pragma once
#include <immintrin.h>

UNSLOTH_ISA_NAMESPACE_BEGIN

struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};
constexpr int lanes = 16;
/** Rows of accumulators that a register tile of two vectors' width can hold. */
constexpr int tileRows = 8;

UNSLOTH_INLINE __mmask16 firstLanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

UNSLOTH_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
UNSLOTH_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
UNSLOTH_INLINE Vec loadPart(const float* p, int count) { return {_mm512_maskz_loadu_ps(firstLanes(count), p)}; }
UNSLOTH_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
UNSLOTH_INLINE void storePart(float* p, Vec a, int count) { _mm512_mask_storeu_ps(p, firstLanes(count), a.v); }

UNSLOTH_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
/** a·b + c */
UNSLOTH_INLINE Vec mulAdd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/** c − a·b */
UNSLOTH_INLINE Vec mulSub(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
UNSLOTH_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
UNSLOTH_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
UNSLOTH_INLINE Vec squareRoot(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
UNSLOTH_INLINE Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
UNSLOTH_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
UNSLOTH_INLINE Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
UNSLOTH_INLINE Vec roundToEven(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/** a·2ⁿ for whole n, with gradual underflow. */
UNSLOTH_INLINE Vec scaleByPowerOfTwo(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
UNSLOTH_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
UNSLOTH_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }

UNSLOTH_INLINE Vec loadBf16(const uint16_t* p) {
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
UNSLOTH_INLINE Vec loadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
/** Round to nearest even; NaN stays NaN. */
UNSLOTH_INLINE void storeBf16(uint16_t* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  rounded = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
UNSLOTH_INLINE void storeF16(uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/** Writes columns 0…3 of `lanes` rows of src as four vectors: dst[c·ldDst + row]. */
UNSLOTH_INLINE void transposeFour(const float* src, ptrdiff_t ld, float* dst, ptrdiff_t ldDst) {
  __m512 r[4];
  for (int k = 0; k < 4; ++k) {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(src + k * ld));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(src + (k + 4) * ld), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(src + (k + 8) * ld), 2);
    r[k] = _mm512_insertf32x4(v, _mm_loadu_ps(src + (k + 12) * ld), 3);
  }
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpacklo_ps(r[2], r[3]);
  const __m512 c = _mm512_unpackhi_ps(r[0], r[1]), d = _mm512_unpackhi_ps(r[2], r[3]);
  _mm512_storeu_ps(dst, _mm512_shuffle_ps(a, b, 0x44));
  _mm512_storeu_ps(dst + ldDst, _mm512_shuffle_ps(a, b, 0xee));
  _mm512_storeu_ps(dst + 2 * ldDst, _mm512_shuffle_ps(c, d, 0x44));
  _mm512_storeu_ps(dst + 3 * ldDst, _mm512_shuffle_ps(c, d, 0xee));
}

UNSLOTH_ISA_NAMESPACE_END
