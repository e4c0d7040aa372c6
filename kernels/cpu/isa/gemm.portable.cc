#include "gemmIsa.inc"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace unsloth::cpu {
namespace {

/** Four lanes: SSE2 or NEON through the compiler's vectors, plain loops elsewhere. */
struct Portable {
  static constexpr int lanes = 4;
  static constexpr int dotColumns = 2;
#if defined(__GNUC__)
  typedef float Vec __attribute__((vector_size(16)));
  static UNSLOTH_ALWAYS_INLINE Vec add(Vec a, Vec b) { return a + b; }
  static UNSLOTH_ALWAYS_INLINE Vec mul(Vec a, Vec b) { return a * b; }
#else
  struct Vec {
    float lane[4];
    float& operator[](int i) { return lane[i]; }
    float operator[](int i) const { return lane[i]; }
  };
  static UNSLOTH_ALWAYS_INLINE Vec add(Vec a, Vec b) { return {a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]}; }
  static UNSLOTH_ALWAYS_INLINE Vec mul(Vec a, Vec b) { return {a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]}; }
#endif
#if defined(__ARM_NEON)
  static UNSLOTH_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  }
#else
  static UNSLOTH_ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }
#endif
  static UNSLOTH_ALWAYS_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
  static UNSLOTH_ALWAYS_INLINE Vec zero() { return splat(0); }
  static UNSLOTH_ALWAYS_INLINE Vec splatWord(const float* p) { return splat(*p); }
  static UNSLOTH_ALWAYS_INLINE Vec load(const float* p) { return Vec{p[0], p[1], p[2], p[3]}; }
  static UNSLOTH_ALWAYS_INLINE Vec loadPart(const float* p, int count) {
    Vec v = zero();
    for (int i = 0; i < count && i < lanes; ++i) v[i] = p[i];
    return v;
  }
  static UNSLOTH_ALWAYS_INLINE void store(float* p, Vec v) {
    for (int i = 0; i < lanes; ++i) p[i] = v[i];
  }
  static UNSLOTH_ALWAYS_INLINE void storePart(float* p, Vec v, int count) {
    for (int i = 0; i < count && i < lanes; ++i) p[i] = v[i];
  }
  static UNSLOTH_ALWAYS_INLINE float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static UNSLOTH_ALWAYS_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
  }
  static UNSLOTH_ALWAYS_INLINE float fromBits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE float widenOne(const void* p, int64_t at) {
    if constexpr (dtype == DType::F32) return static_cast<const float*>(p)[at];
    const uint16_t bits = static_cast<const uint16_t*>(p)[at];
    return dtype == DType::BF16 ? fromBits(static_cast<uint32_t>(bits) << 16) : f16ToFloat(bits);
  }
  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE Vec widen(const void* p, int64_t at) {
    return Vec{widenOne<dtype>(p, at), widenOne<dtype>(p, at + 1), widenOne<dtype>(p, at + 2), widenOne<dtype>(p, at + 3)};
  }
  template <DType dtype>
  static UNSLOTH_ALWAYS_INLINE Vec widenPart(const void* p, int64_t at, int count) {
    Vec v = zero();
    for (int i = 0; i < count && i < lanes; ++i) v[i] = widenOne<dtype>(p, at + i);
    return v;
  }
  static UNSLOTH_ALWAYS_INLINE Vec roundToBf16(Vec v) {
    for (int i = 0; i < lanes; ++i) v[i] = bf16ToFloat(floatToBf16(v[i]));
    return v;
  }
  static UNSLOTH_ALWAYS_INLINE void transpose(Vec (&v)[4]) {
    const Vec a = v[0], b = v[1], c = v[2], d = v[3];
    for (int i = 0; i < 4; ++i) v[i] = Vec{a[i], b[i], c[i], d[i]};
  }
};

struct FloatMath {
  static UNSLOTH_ALWAYS_INLINE Portable::Vec multiplyAdd(Portable::Vec a, Portable::Vec b, Portable::Vec sum) {
    return Portable::fma(a, b, sum);
  }
};

#include "gemmTile.inc"
#include "gemmPack.inc"
#include "gemmDot.inc"

#if defined(__aarch64__) || defined(_M_ARM64)  // 32 vector registers
constexpr GemmKernel float32 = {"portable 8x12",     8, 12, 8, 12, 1, 1, 256, packFloats<Portable, 8>, packFloats<Portable, 12>,
                                multiplyBlock<Portable, FloatMath, 8, 3>};
#else
constexpr GemmKernel float32 = {"portable 4x8",      4, 8, 4, 8, 1, 1, 256, packFloats<Portable, 4>, packFloats<Portable, 8>,
                                multiplyBlock<Portable, FloatMath, 4, 2>};
#endif
constexpr GemmKernels kernels = {&float32, &float32, dotProducts<Portable>, widenRow<Portable>};

}  // namespace

const GemmKernels* const gemmPortable = &kernels;

}  // namespace unsloth::cpu
