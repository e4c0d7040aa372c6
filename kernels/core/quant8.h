#pragma once
#include <cmath>
#include <cstdint>

#include "tensor.h"

/**
 * Matrices of 8 bits with a scale for each block of them: LLM.int8 (arXiv 2208.07339: a row's numbers times its maximum, over 127) and
 * FP8 e4m3 (arXiv 2209.05433) with a scale for the tensor, for each row, or for blocks of 128 × 128. value = number·scale / divisor,
 * each operation rounded to fp32, then to the type that the matrix had. One tensor of the arena holds everything:
 *
 *   byte 0    uint32 kind (0: int8, 1: e4m3), rounding (the DType that values are rounded to), blockRows, blockCols; float divisor
 *   byte 256  the numbers, one a byte, row by row
 *   then      float scale of every block, a row of blocks after another
 *
 * Each part starts at a multiple of 256 bytes. engine/graph/quant8.ts lays the same out.
 */
namespace unsloth {

struct Quant8Header {
  uint32_t kind, rounding, blockRows, blockCols;
  float divisor;
};

struct Quant8Layout {
  static constexpr int64_t numbersAt = 256, part = 256;

  int64_t rows, cols;

  constexpr int64_t scalesAt() const { return (numbersAt + rows * cols + part - 1) / part * part; }
  /** With one scale: what a plan can check without looking into the tensor. */
  constexpr int64_t leastBytes() const { return scalesAt() + 4; }
};

/** The parts of an 8-bit matrix. Where it lies on a GPU, the header is read by the kernel. */
struct Quant8View {
  const std::byte* base;
  const uint8_t* numbers;
  const float* scales;

  explicit Quant8View(const View& v) {
    base = static_cast<const std::byte*>(v.data);
    numbers = reinterpret_cast<const uint8_t*>(base + Quant8Layout::numbersAt);
    scales = reinterpret_cast<const float*>(base + Quant8Layout{v.rows, v.cols}.scalesAt());
  }
};

inline Quant8Header quant8Header(const Quant8View& q) {
  Quant8Header header;
  std::memcpy(&header, q.base, sizeof header);
  return header;
}

/** OCP E4M3: no infinities, NaN is all ones. */
inline float e4m3ToFloat(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9) : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits & 0x80 ? -size : size;
}

/** Rows with a larger maximum than fp16 holds are quantised as they are; the others as fp16, as bitsandbytes does. */
constexpr float mostOfHalf = 65504.0f;

}  // namespace unsloth
