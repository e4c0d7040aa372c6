#pragma once
#include "../core/quant8.h"
#include "vector.cuh"

/** How kernels read matrices of 8 bits. */
namespace unsloth::cuda {

/** A matrix's header and where its parts stand. */
struct Matrix8 {
  const uint8_t* numbers;
  const float* scales;
  uint32_t across, blockRows, blockCols, rounding;
  bool fp8;
  float divisor, inverse;

  __device__ __forceinline__ Matrix8(const Quant8View& q, int64_t cols) : numbers(q.numbers), scales(q.scales) {
    const auto* header = reinterpret_cast<const uint32_t*>(q.base);
    fp8 = header[0] != 0;
    rounding = header[1];
    blockRows = header[2];
    blockCols = header[3];
    divisor = __uint_as_float(header[4]);
    inverse = __frcp_rn(divisor);
    across = (static_cast<uint32_t>(cols) + blockCols - 1) / blockCols;
  }

  /** What byte i of a word stands for. */
  __device__ __forceinline__ float number(uint32_t word, int i) const {
    if (fp8) {
      // The fields of e4m3 at their place in a half are the number divided by 2⁸, subnormal ones included.
      const uint32_t bits = word >> (8 * i);
      return __half2float(__ushort_as_half(static_cast<unsigned short>((bits & 0x80u) << 8 | (bits & 0x7fu) << 7))) * 256.0f;
    }
    // 2²³ + (byte + 128), the byte being signed.
    return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7540u | static_cast<uint32_t>(i))) - 8388736.0f;
  }
  __device__ __forceinline__ float scale(int64_t row, int64_t column) const {
    return __ldg(scales + int64_t{static_cast<uint32_t>(row) / blockRows} * across + static_cast<uint32_t>(column) / blockCols);
  }
  /** x / divisor, rounded once (Markstein, IBM J. Res. Dev. 34, 1990). */
  __device__ __forceinline__ float divided(float x) const {
    const float q = __fmul_rn(x, inverse);
    return __fmaf_rn(__fmaf_rn(-q, divisor, x), inverse, q);
  }

};

}  // namespace unsloth::cuda
