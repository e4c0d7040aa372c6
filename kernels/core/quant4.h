#pragma once
#include <cstdint>

#include "tensor.h"

/**
 * Matrices in blocks of 4 bits, as bitsandbytes computes them (NF4: arXiv 2305.14314): 64 successive elements of the flattened
 * matrix share a maximum; a code stands for code[q]·absmax, rounded to the type that the matrix had. One tensor of the arena
 * holds everything, so that a command names it like any other matrix:
 *
 *   byte 0     float code[16]: what the codes stand for (NF4, FP4, or the table of a checkpoint)
 *   byte 64    uint32 groupShift; uint32 rounding (the DType that values are rounded to)
 *   byte 256   float nestedCode[256]
 *   byte 1280  codes, two a byte, the first in the high half
 *   then       absmax of every block: float (Q4), or uint8 (Q4N: nested)
 *   then       Q4N only: float pairs (scale, offset) for each 2^groupShift blocks: absmax = nestedCode[q]·scale + offset
 *
 * Each part starts at a multiple of 256 bytes. engine/io/quant4.ts lays the same out.
 */
namespace unsloth {

struct Quant4Layout {
  static constexpr int64_t block = 64, codesAt = 1280, part = 256;
  /** Blocks that share a nested scale when bitsandbytes quantises: at most. */
  static constexpr int64_t nestedBlock = 256;

  int64_t elements;
  bool nested;

  static constexpr int64_t align(int64_t bytes) { return (bytes + part - 1) / part * part; }
  constexpr int64_t blocks() const { return (elements + block - 1) / block; }
  constexpr int64_t absmaxAt() const { return align(codesAt + (elements + 1) / 2); }
  constexpr int64_t nestedAt() const { return align(absmaxAt() + blocks() * (nested ? 1 : 4)); }
  constexpr int64_t bytes(int64_t groupShift) const {
    return nested ? nestedAt() + ((blocks() + (int64_t{1} << groupShift) - 1) >> groupShift) * 8 : nestedAt();
  }
  /** With the largest groups: what a plan can check without looking into the tensor. */
  constexpr int64_t leastBytes() const { return bytes(8); }
};

/** The parts of a quantised matrix. Where it lies on a GPU, `groupShift` and `rounding` are read by the kernel. */
struct Quant4View {
  const std::byte* base;
  const float* code;
  const float* nestedCode;
  const uint8_t* codes;
  const float* absmax;        // Q4
  const uint8_t* absmaxCode;  // Q4N
  const float* nested;        // Q4N: (scale, offset) pairs

  explicit Quant4View(const View& v) {
    const Quant4Layout layout{v.rows * v.cols, v.dtype == DType::Q4N};
    base = static_cast<const std::byte*>(v.data);
    code = reinterpret_cast<const float*>(base);
    nestedCode = reinterpret_cast<const float*>(base + 256);
    codes = reinterpret_cast<const uint8_t*>(base + Quant4Layout::codesAt);
    const std::byte* maxima = base + layout.absmaxAt();
    absmax = layout.nested ? nullptr : reinterpret_cast<const float*>(maxima);
    absmaxCode = layout.nested ? reinterpret_cast<const uint8_t*>(maxima) : nullptr;
    nested = layout.nested ? reinterpret_cast<const float*>(base + layout.nestedAt()) : nullptr;
  }
};

/** The header's numbers behind the code table. */
struct Quant4Header {
  uint32_t groupShift, rounding;
};

inline Quant4Header quant4Header(const Quant4View& q) {
  Quant4Header header;
  std::memcpy(&header, q.base + 64, sizeof header);
  return header;
}

constexpr float nf4Code[16] = {-1.0f,
                               -0.6961928009986877f,
                               -0.5250730514526367f,
                               -0.39491748809814453f,
                               -0.28444138169288635f,
                               -0.18477343022823334f,
                               -0.09105003625154495f,
                               0.0f,
                               0.07958029955625534f,
                               0.16093020141124725f,
                               0.24611230194568634f,
                               0.33791524171829224f,
                               0.44070982933044434f,
                               0.5626170039176941f,
                               0.7229568362236023f,
                               1.0f};

/** FP4: 1 sign, 2 exponent and 1 mantissa bit, scaled to a largest value of 1. */
constexpr float fp4Code[16] = {0.0f,  0.005208333333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
                               -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f};

struct Map8 {
  float at[256];
};

/**
 * The dynamic 8-bit map (arXiv 2110.02861): a sign, as many leading zeros as the decimal exponent, the rest linear. Boundaries
 * are those of torch.linspace in fp32: one fused operation each, which fp64 gives exactly.
 */
constexpr Map8 dynamicMap(bool isSigned) {
  constexpr float tens[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f}, low = 0.1f;
  Map8 map{};
  int count = 0;
  for (int i = 0; i < 7; ++i) {
    const int n = (1 << (isSigned ? i : i + 1)) + 1;
    const float step = (1.0f - low) / static_cast<float>(n - 1);
    const auto boundary = [&](int k) {
      const double s = step;
      return static_cast<float>(k < n / 2 ? s * k + static_cast<double>(low) : 1.0 - s * (n - 1 - k));
    };
    for (int k = 0; k + 1 < n; ++k) {
      const float sum = boundary(k) + boundary(k + 1);
      const float value = sum / 2.0f * tens[i];
      map.at[count++] = value;
      if (isSigned) map.at[count++] = -value;
    }
  }
  map.at[count++] = 0.0f;
  map.at[count++] = 1.0f;
  for (int i = 1; i < count; ++i) {
    const float value = map.at[i];
    int at = i;
    for (; at > 0 && map.at[at - 1] > value; --at) map.at[at] = map.at[at - 1];
    map.at[at] = value;
  }
  return map;
}

/** Nearest entry of a sorted map of 256: a tie goes where bitsandbytes' search stands. */
constexpr uint8_t nearest8(const float* map, float x) {
  int pivot = 127, upper = 255, lower = 0;
  float value = map[pivot];
  for (int step = 64; step > 0; step >>= 1) {
    if (x > value) {
      lower = pivot;
      pivot += step;
    } else {
      upper = pivot;
      pivot -= step;
    }
    value = map[pivot];
  }
  if (x > value) return static_cast<uint8_t>(x > (map[upper] + value) * 0.5f ? upper : pivot);
  return static_cast<uint8_t>(x < (map[lower] + value) * 0.5f ? lower : pivot);
}

}  // namespace unsloth
