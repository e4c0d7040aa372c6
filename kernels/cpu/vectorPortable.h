#pragma once
#include <math.h>

#include "../core/tensor.h"

UNSLOTH_ISA_NAMESPACE_BEGIN

constexpr int lanes = 4;
/** Rows of accumulators that a register tile of two vectors' width can hold. */
constexpr int tileRows = 4;

#if defined(__GNUC__)
/** SSE2, NEON or whatever the baseline has: the compiler's own vectors. */
typedef float Native __attribute__((vector_size(16)));
typedef int32_t NativeMask __attribute__((vector_size(16)));
struct Vec {
  Native v;
};
struct Mask {
  NativeMask m;
};
UNSLOTH_INLINE Vec of(float a, float b, float c, float d) { return {Native{a, b, c, d}}; }
UNSLOTH_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
UNSLOTH_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
UNSLOTH_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
UNSLOTH_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
UNSLOTH_INLINE Mask less(Vec a, Vec b) { return {a.v < b.v}; }
UNSLOTH_INLINE Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
UNSLOTH_INLINE Vec select(Mask m, Vec yes, Vec no) { return {m.m ? yes.v : no.v}; }
#else
struct Vec {
  float v[4];
};
struct Mask {
  bool m[4];
};
UNSLOTH_INLINE Vec of(float a, float b, float c, float d) { return {{a, b, c, d}}; }
template <class Lane>
UNSLOTH_INLINE Vec perLane(Lane lane) {
  return of(lane(0), lane(1), lane(2), lane(3));
}
UNSLOTH_INLINE Vec operator+(Vec a, Vec b) {
  return perLane([&](int i) { return a.v[i] + b.v[i]; });
}
UNSLOTH_INLINE Vec operator-(Vec a, Vec b) {
  return perLane([&](int i) { return a.v[i] - b.v[i]; });
}
UNSLOTH_INLINE Vec operator*(Vec a, Vec b) {
  return perLane([&](int i) { return a.v[i] * b.v[i]; });
}
UNSLOTH_INLINE Vec operator/(Vec a, Vec b) {
  return perLane([&](int i) { return a.v[i] / b.v[i]; });
}
UNSLOTH_INLINE Mask less(Vec a, Vec b) { return {{a.v[0] < b.v[0], a.v[1] < b.v[1], a.v[2] < b.v[2], a.v[3] < b.v[3]}}; }
UNSLOTH_INLINE Mask operator&(Mask a, Mask b) {
  return {{a.m[0] && b.m[0], a.m[1] && b.m[1], a.m[2] && b.m[2], a.m[3] && b.m[3]}};
}
UNSLOTH_INLINE Vec select(Mask m, Vec yes, Vec no) {
  return perLane([&](int i) { return m.m[i] ? yes.v[i] : no.v[i]; });
}
#endif

UNSLOTH_INLINE Vec set(float x) { return of(x, x, x, x); }
UNSLOTH_INLINE Vec load(const float* p) {
  Vec a;
  memcpy(&a, p, sizeof a);
  return a;
}
UNSLOTH_INLINE void store(float* p, Vec a) { memcpy(p, &a, sizeof a); }
UNSLOTH_INLINE Vec loadPart(const float* p, int count) {
  float values[4] = {0, 0, 0, 0};
  for (int i = 0; i < count; ++i) values[i] = p[i];
  return load(values);
}
UNSLOTH_INLINE void storePart(float* p, Vec a, int count) {
  float values[4];
  store(values, a);
  for (int i = 0; i < count; ++i) p[i] = values[i];
}
/** a·b + c, rounded twice */
UNSLOTH_INLINE Vec mulAdd(Vec a, Vec b, Vec c) { return a * b + c; }
/** c − a·b, rounded twice */
UNSLOTH_INLINE Vec mulSub(Vec a, Vec b, Vec c) { return c - a * b; }
UNSLOTH_INLINE Vec min(Vec a, Vec b) { return select(less(a, b), a, b); }
UNSLOTH_INLINE Vec max(Vec a, Vec b) { return select(less(b, a), a, b); }
UNSLOTH_INLINE Vec abs(Vec a) { return of(fabsf(a.v[0]), fabsf(a.v[1]), fabsf(a.v[2]), fabsf(a.v[3])); }
UNSLOTH_INLINE Vec squareRoot(Vec a) { return of(sqrtf(a.v[0]), sqrtf(a.v[1]), sqrtf(a.v[2]), sqrtf(a.v[3])); }
/** For |a| < 2²². */
UNSLOTH_INLINE Vec roundToEven(Vec a) {
  const Vec shift = set(12582912.0f);  // 1.5·2²³: the sum has no fraction bits left
  return (a + shift) - shift;
}
UNSLOTH_INLINE float powerOfTwo(int32_t n) {
  const int32_t bits = (n + 127) << 23;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
/** a·2ⁿ for whole n in −252 … 254, with gradual underflow. */
UNSLOTH_INLINE Vec scaleByPowerOfTwo(Vec a, Vec n) {
  float first[4], second[4];
  for (int i = 0; i < 4; ++i) {
    const float lane = n.v[i];
    const int32_t whole = lane > -253 && lane < 255 ? static_cast<int32_t>(lane) : 0,
                  half = whole >> 1;  // a NaN lane is NaN in `a` too
    first[i] = powerOfTwo(half);
    second[i] = powerOfTwo(whole - half);
  }
  return a * load(first) * load(second);
}
UNSLOTH_INLINE float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
UNSLOTH_INLINE float largest(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1], y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}
UNSLOTH_INLINE Vec loadBf16(const uint16_t* p) {
  return of(bf16ToFloat(p[0]), bf16ToFloat(p[1]), bf16ToFloat(p[2]), bf16ToFloat(p[3]));
}
UNSLOTH_INLINE Vec loadF16(const uint16_t* p) {
  return of(f16ToFloat(p[0]), f16ToFloat(p[1]), f16ToFloat(p[2]), f16ToFloat(p[3]));
}
UNSLOTH_INLINE void storeBf16(uint16_t* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = floatToBf16(a.v[i]);
}
UNSLOTH_INLINE void storeF16(uint16_t* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = floatToF16(a.v[i]);
}

/** Writes columns 0…3 of `lanes` rows of src as four vectors: dst[c·ldDst + row]. */
UNSLOTH_INLINE void transposeFour(const float* src, ptrdiff_t ld, float* dst, ptrdiff_t ldDst) {
  for (int c = 0; c < 4; ++c)
    for (int r = 0; r < 4; ++r) dst[c * ldDst + r] = src[r * ld + c];
}

UNSLOTH_ISA_NAMESPACE_END
