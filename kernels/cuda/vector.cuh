#pragma once
#include <algorithm>

#include "../core/wholeNumbers.h"
#include "element.cuh"

namespace unsloth::cuda {

/**
 * n / divisor for 0 ≤ n < 2³¹ by one multiplication: ⌈2^p / divisor⌉·n / 2^p with p = 31 + ⌈log₂ divisor⌉ (Granlund and
 * Montgomery, PLDI 1994).
 */
struct Division {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  Division() = default;
  explicit Division(uint32_t d) : divisor(d) {
    uint32_t log = 0;
    while ((uint64_t{1} << log) < d) ++log;
    if (d == 1) return;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + log)) + d - 1) / d);
    shift = log - 1;
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t n) const { return divisor == 1 ? n : __umulhi(n, multiplier) >> shift; }
};

template <int bytes>
struct RawOf;
template <>
struct RawOf<16> {
  using type = uint4;
};
template <>
struct RawOf<8> {
  using type = uint2;
};
template <>
struct RawOf<4> {
  using type = uint32_t;
};
template <>
struct RawOf<2> {
  using type = uint16_t;
};

/** `count` neighbouring elements as they stand in memory, moved by one instruction (at most 16 bytes). */
template <class T, int count>
using Raw = typename RawOf<static_cast<int>(sizeof(T)) * count>::type;

template <class T, int count>
__device__ __forceinline__ Raw<T, count> loadRaw(const T* p) {
  return *reinterpret_cast<const Raw<T, count>*>(p);
}

template <class T, int count>
__device__ __forceinline__ void storeRaw(T* p, Raw<T, count> raw) {
  *reinterpret_cast<Raw<T, count>*>(p) = raw;
}

template <class T>
__device__ __forceinline__ void widenPair(uint32_t word, float& low, float& high) {
  if constexpr (std::is_same_v<T, bf16>) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  } else {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
    low = both.x;
    high = both.y;
  }
}

template <class T>
__device__ __forceinline__ uint32_t narrowPair(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    word = *reinterpret_cast<const uint32_t*>(&both);
  } else {
    const __half2 both = __floats2half2_rn(low, high);
    word = *reinterpret_cast<const uint32_t*>(&both);
  }
  return word;
}

template <class T, int count>
__device__ __forceinline__ void widenRaw(const Raw<T, count>& raw, float (&out)[count]) {
  if constexpr (count * sizeof(T) == 2) {
    out[0] = widen(*reinterpret_cast<const T*>(&raw));
  } else {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(&raw);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < count; ++i) out[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < count / 2; ++i) widenPair<T>(words[i], out[2 * i], out[2 * i + 1]);
    }
  }
}

template <class T, int count>
__device__ __forceinline__ Raw<T, count> narrowRaw(const float (&in)[count]) {
  Raw<T, count> raw;
  if constexpr (count * sizeof(T) == 2) {
    const T value = narrow<T>(in[0]);
    raw = *reinterpret_cast<const uint16_t*>(&value);
  } else {
    uint32_t* words = reinterpret_cast<uint32_t*>(&raw);
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < count; ++i) words[i] = __float_as_uint(in[i]);
    } else {
#pragma unroll
      for (int i = 0; i < count / 2; ++i) words[i] = narrowPair<T>(in[2 * i], in[2 * i + 1]);
    }
  }
  return raw;
}

/** Widened elements p[0, count); p is aligned to 16 bytes or to their size, whichever is less. */
template <class T, int count>
__device__ __forceinline__ void loadVector(const T* p, float (&out)[count]) {
  if constexpr (count * sizeof(T) <= 16) {
    widenRaw<T, count>(loadRaw<T, count>(p), out);
  } else {
    constexpr int piece = perVector<T>;
    float part[count / piece][piece];
#pragma unroll
    for (int i = 0; i < count / piece; ++i) widenRaw<T, piece>(loadRaw<T, piece>(p + i * piece), part[i]);
#pragma unroll
    for (int i = 0; i < count; ++i) out[i] = part[i / piece][i % piece];
  }
}

template <class T, int count>
__device__ __forceinline__ void storeVector(T* p, const float (&in)[count]) {
  if constexpr (count * sizeof(T) <= 16) {
    storeRaw<T, count>(p, narrowRaw<T, count>(in));
  } else {
    constexpr int piece = perVector<T>;
#pragma unroll
    for (int i = 0; i < count / piece; ++i) {
      float part[piece];
#pragma unroll
      for (int j = 0; j < piece; ++j) part[j] = in[i * piece + j];
      storeRaw<T, piece>(p + i * piece, narrowRaw<T, piece>(part));
    }
  }
}

/** A matrix or list whose element type is known at run time only: every thread of a launch takes the same branch. */
struct AnyFloats {
  const void* data = nullptr;
  DType dtype = DType::F32;

  AnyFloats() = default;
  explicit AnyFloats(const View& v) : data(v.data), dtype(v.dtype) {}

  /** Widened elements [index, index + count), aligned as in loadVector. */
  template <int count>
  __device__ __forceinline__ void load(int64_t index, float (&out)[count]) const {
    if (dtype == DType::BF16) loadVector(static_cast<const bf16*>(data) + index, out);
    else if (dtype == DType::F16) loadVector(static_cast<const __half*>(data) + index, out);
    else loadVector(static_cast<const float*>(data) + index, out);
  }
  /** The same where the type is not T. */
  template <class T, int count>
  __device__ __forceinline__ void loadOther(int64_t index, float (&out)[count]) const {
    if constexpr (std::is_same_v<T, bf16>) {
      if (dtype == DType::F16) return loadVector(static_cast<const __half*>(data) + index, out);
    } else {
      if (dtype == DType::BF16) return loadVector(static_cast<const bf16*>(data) + index, out);
    }
    if constexpr (std::is_same_v<T, float>) loadVector(static_cast<const __half*>(data) + index, out);
    else loadVector(static_cast<const float*>(data) + index, out);
  }
  __device__ __forceinline__ float at(int64_t index) const {
    float value[1];
    load(index, value);
    return value[0];
  }
};

template <class T>
constexpr DType dtypeOf = std::is_same_v<T, float>  ? DType::F32
                          : std::is_same_v<T, bf16> ? DType::BF16
                                                    : DType::F16;

/** Whether rows of a view can be read `count` elements at a time, in pieces of at most 16 bytes. */
inline bool vectorised(const View& v, int count) {
  const size_t width = bytesPerElement(v.dtype), piece = std::min<size_t>(16, width * static_cast<size_t>(count));
  return reinterpret_cast<uintptr_t>(v.data) % piece == 0 && static_cast<size_t>(v.ld) * width % piece == 0 &&
         v.cols % count == 0;
}

/** Whether the rows of a matrix follow each other without a gap. */
inline bool gapless(const View& v) { return v.ld == v.cols || v.rows <= 1; }

}  // namespace unsloth::cuda
