#pragma once
#include "element.cuh"
#include "gemm.h"

namespace unsloth::cuda {

/** An element of a matrix whose type is known at run time only. */
__device__ __forceinline__ float loadAny(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::BF16) return widen(static_cast<const bf16*>(data)[i]);
  if (dtype == DType::F16) return widen(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

__device__ __forceinline__ void storeAny(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::BF16) static_cast<bf16*>(data)[i] = narrow<bf16>(value);
  else if (dtype == DType::F16) static_cast<__half*>(data)[i] = narrow<__half>(value);
  else static_cast<float*>(data)[i] = value;
}

/** What becomes of the sums of a product: c = [c +] value + bias + add, in fp32, rounded once. */
struct Epilogue {
  void* c;
  const void *bias, *add;
  int64_t m, n, ldc, ldAdd, biasStride;
  DType cType, biasType, addType;
  bool accumulate;
  bool pairs, vectors;  // two neighbouring elements of a row of c and add may move at once, 16 bytes

  __device__ __forceinline__ void store(int64_t row, int64_t column, float value) const {
    if (row >= m || column >= n) return;
    if (bias != nullptr) value += loadAny(bias, biasType, column * biasStride);
    if (add != nullptr) value += loadAny(add, addType, row * ldAdd + column);
    if (accumulate) value += loadAny(c, cType, row * ldc + column);
    storeAny(c, cType, row * ldc + column, value);
  }

  /** Columns `column` (even) and the next. */
  __device__ __forceinline__ void storePair(int64_t row, int64_t column, float first, float second) const {
    if (!pairs || column + 1 >= n) {
      store(row, column, first);
      store(row, column + 1, second);
      return;
    }
    if (row >= m) return;
    if (bias != nullptr) {
      first += loadAny(bias, biasType, column * biasStride);
      second += loadAny(bias, biasType, (column + 1) * biasStride);
    }
    if (add != nullptr) addPair(add, addType, row * ldAdd + column, first, second);
    const int64_t at = row * ldc + column;
    if (accumulate) addPair(c, cType, at, first, second);
    if (cType == DType::F32) {
      *reinterpret_cast<float2*>(static_cast<float*>(c) + at) = make_float2(first, second);
    } else if (cType == DType::BF16) {
      *reinterpret_cast<__nv_bfloat162*>(static_cast<bf16*>(c) + at) = __floats2bfloat162_rn(first, second);
    } else {
      *reinterpret_cast<__half2*>(static_cast<__half*>(c) + at) = __floats2half2_rn(first, second);
    }
  }

  /** Columns `column` (a multiple of 8) to column + 7. */
  __device__ __forceinline__ void storeEight(int64_t row, int64_t column, float (&v)[8]) const {
    if (row >= m || column >= n) return;
    if (!vectors || column + 8 > n) {
#pragma unroll 1
      for (int i = 0; i < 8; i += 2) {  // chosen, not indexed: v stays in registers
        const float first = i == 0   ? v[0]
                            : i == 2 ? v[2]
                            : i == 4 ? v[4]
                                     : v[6],
                    second = i == 0   ? v[1]
                             : i == 2 ? v[3]
                             : i == 4 ? v[5]
                                      : v[7];
        storePair(row, column + i, first, second);
      }
      return;
    }
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += loadAny(bias, biasType, (column + i) * biasStride);
    }
    if (add != nullptr) addEight(add, addType, row * ldAdd + column, v);
    const int64_t at = row * ldc + column;
    if (accumulate) addEight(c, cType, at, v);
    if (cType == DType::F32) {
      auto* to = reinterpret_cast<float4*>(static_cast<float*>(c) + at);
      to[0] = make_float4(v[0], v[1], v[2], v[3]);
      to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else if (cType == DType::BF16) {
      storeAs<bf16>(at, v);
    } else {
      storeAs<__half>(at, v);
    }
  }

 private:
  template <class T>
  __device__ __forceinline__ void storeAs(int64_t at, const float (&v)[8]) const {
    Pack<T, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.at[i] = narrow<T>(v[i]);
    *reinterpret_cast<Pack<T, 8>*>(static_cast<T*>(c) + at) = pack;
  }
  template <class T, int count>
  static __device__ __forceinline__ void addPack(const void* data, int64_t at, float* v) {
    const auto pack = *reinterpret_cast<const Pack<T, count>*>(static_cast<const T*>(data) + at);
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] += widen(pack.at[i]);
  }
  static __device__ __forceinline__ void addEight(const void* data, DType dtype, int64_t at, float (&v)[8]) {
    if (dtype == DType::F32) {
      addPack<float, 4>(data, at, v);
      addPack<float, 4>(data, at + 4, v + 4);
    } else if (dtype == DType::BF16) {
      addPack<bf16, 8>(data, at, v);
    } else {
      addPack<__half, 8>(data, at, v);
    }
  }
  static __device__ __forceinline__ void addPair(const void* data, DType dtype, int64_t at, float& first, float& second) {
    float2 v;
    if (dtype == DType::F32) v = *reinterpret_cast<const float2*>(static_cast<const float*>(data) + at);
    else if (dtype == DType::BF16)
      v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(static_cast<const bf16*>(data) + at));
    else v = __half22float2(*reinterpret_cast<const __half2*>(static_cast<const __half*>(data) + at));
    first += v.x;
    second += v.y;
  }
};

/** Whether pieces of so many bytes of a row can be moved at once. */
inline bool movesInPieces(const View& v, size_t bytes) {
  return !v.present() ||
         (reinterpret_cast<uintptr_t>(v.data) % bytes == 0 && static_cast<size_t>(v.ld) * bytesPerElement(v.dtype) % bytes == 0);
}

inline Epilogue epilogueOf(const GemmArgs& args) {
  const View &c = args.c, &add = args.add;
  const bool pairs = movesInPieces(c, 2 * bytesPerElement(c.dtype)) && movesInPieces(add, 2 * bytesPerElement(add.dtype));
  return {c.data,    args.bias.data,
          add.data,  args.m,
          args.n,    c.ld,
          add.ld,    args.bias.rows == 1 ? 1 : args.bias.ld,
          c.dtype,   args.bias.dtype,
          add.dtype, args.accumulate,
          pairs,     movesInPieces(c, 16) && movesInPieces(add, 16)};
}

/**
 * Products whose k is split over blocks: each writes its sums to scratch, and the block that comes last to a tile adds up all
 * splits in order, so that the result does not depend on which one that is. A counter is left at zero for the next launch.
 * All threads of a block call this after their writes; `flag` is shared memory.
 */
__device__ __forceinline__ bool lastOfSplits(unsigned* counter, int splits, int* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomicInc(counter, splits - 1) == static_cast<unsigned>(splits - 1);
  __syncthreads();
  if (*flag == 0) return false;
  __threadfence();
  return true;
}

/** Tiles whose k can be split in one launch: the counters of a kernel family, zero before and after every launch. */
constexpr int64_t maxSplitTiles = 4096;

}  // namespace unsloth::cuda
