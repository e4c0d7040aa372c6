#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace unsloth {

/** Element types; the numbers are those of `dtypes` in engine/graph/dtype.ts. */
enum class DType : int32_t { F32 = 0, BF16 = 1, F16 = 2, I32 = 3, F64 = 4, U8 = 5, Q4 = 6, Q4N = 7, Q8 = 8, F8 = 9 };

/** Matrices of 4 or 8 bits: only whole ones, see quant4.h and quant8.h. */
inline bool isQuantised(DType type) { return type == DType::Q4 || type == DType::Q4N || type == DType::Q8; }

inline size_t bytesPerElement(DType type) {
  switch (type) {
    case DType::F64: return 8;
    case DType::F32:
    case DType::I32: return 4;
    case DType::BF16:
    case DType::F16: return 2;
    case DType::U8:
    case DType::F8: return 1;
    case DType::Q4:
    case DType::Q4N:
    case DType::Q8: break;  // no element has a place of its own
  }
  return 0;
}

/**
 * A row-major matrix somewhere in an arena: element (r, c) is data[r * ld + c].
 * `rows` is the count of live rows in this run (a plan is built for a maximum). An absent operand has data == nullptr.
 */
struct View {
  void* data = nullptr;
  DType dtype = DType::F32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t ld = 0;

  bool present() const { return data != nullptr; }
  float* f32() const { return static_cast<float*>(data); }
  double* f64() const { return static_cast<double*>(data); }
  int32_t* i32() const { return static_cast<int32_t*>(data); }
  float* row(int64_t r) const { return f32() + r * ld; }
};

inline float bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/** Round to nearest, ties to even; NaN stays NaN. */
inline uint16_t floatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // subnormal: mantissa * 2^-24
    std::memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/** Round to nearest, ties to even; overflow becomes infinity. */
inline uint16_t floatToF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: let float addition do the rounding at 2^-24
    float scaled;
    const uint32_t positive = magnitude;
    std::memcpy(&scaled, &positive, sizeof scaled);
    scaled += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &scaled, sizeof rounded);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

/** Element (r, c) of a floating-point view, widened. For paths where speed does not matter. */
inline float loadElement(const View& v, int64_t r, int64_t c) {
  const int64_t i = r * v.ld + c;
  switch (v.dtype) {
    case DType::BF16: return bf16ToFloat(static_cast<const uint16_t*>(v.data)[i]);
    case DType::F16: return f16ToFloat(static_cast<const uint16_t*>(v.data)[i]);
    case DType::F64: return static_cast<float>(static_cast<const double*>(v.data)[i]);
    default: return static_cast<const float*>(v.data)[i];
  }
}

}  // namespace unsloth
