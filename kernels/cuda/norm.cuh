#pragma once
#include "columnReduce.cuh"
#include "operands.h"

namespace unsloth::cuda {

/**
 * A norm over column groups: row s of `count` is group s mod groups of row s / groups. A team of 2ᵏ threads has one such row, or
 * a few successive ones: within a warp up to 32, else a block.
 */
struct NormShape {
  int64_t count, width, weightStride;  // weightStride: from one group's weights to the next, 0 when all share
  Division groups;
  int team;
  bool plusOne;
  AnyFloats w, b;  // data == nullptr: absent
};

struct NormRow {
  int64_t row, group;
  int last;  // columns, 0 behind the last row
};

/** The row of a thread's team. */
__device__ __forceinline__ NormRow normRow(const NormShape& s) {
  const int64_t at = s.team > 32 ? int64_t{blockIdx.x} : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / s.team;
  if (at >= s.count) return {0, 0, 0};
  const uint32_t row = s.groups(static_cast<uint32_t>(at));
  return {row, at - int64_t{row} * s.groups.divisor, static_cast<int>(s.width)};
}

/** Sums over a team, the same bits in each of its threads. Every use in a kernel has a `slot` of its own. */
template <int values, int slot = 0>
__device__ __forceinline__ void teamSum(float (&v)[values], int team) {
  for (int offset = min(team, 32) / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  if (team <= 32) return;
  __shared__ float warps[values][32];
  const int lane = threadIdx.x % 32;
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < values; ++i) warps[i][threadIdx.x / 32] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < values; ++i) v[i] = lane < team / 32 ? warps[i][lane] : 0.0f;
  for (int offset = team / 64; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
#pragma unroll
  for (int i = 0; i < values; ++i) v[i] = __shfl_sync(0xffffffffu, v[i], 0);
}

/**
 * Weights or biases of one vector: loaded before the sums where they have the type of the rows, so that their latency hides
 * behind them, else when they are used.
 */
template <class T, int width>
struct Parameters {
  Raw<T, width> raw;

  static __device__ __forceinline__ bool early(const AnyFloats& p) {
    return width > 1 && p.data != nullptr && p.dtype == dtypeOf<T>;
  }
  __device__ __forceinline__ void begin(const AnyFloats& p, int64_t at) {
    if (early(p)) raw = loadRaw<T, width>(static_cast<const T*>(p.data) + at);
  }
  __device__ __forceinline__ void get(const AnyFloats& p, int64_t at, float absent, float (&out)[width]) const {
    if (early(p)) {
      widenRaw<T, width>(raw, out);
    } else if (p.data != nullptr) {
      if constexpr (width > 1) p.loadOther<T>(at, out);
      else p.load(at, out);
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) out[i] = absent;
    }
  }
};

/** Calls body(k, column) for the columns of a thread: `held` vectors, or one element wide any number of them with k = 0. */
template <int held, int width, class Body>
__device__ __forceinline__ void eachColumn(int lane, int team, int last, const Body& body) {
  if constexpr (width > 1) {
#pragma unroll
    for (int k = 0; k < held; ++k)
      if (const int c = (lane + k * team) * width; c < last) body(k, c);
  } else {
    for (int c = lane; c < last; c += team) body(0, c);
  }
}

struct NormLaunch {
  uint32_t blocks, threads;
};

inline NormLaunch launchOf(const NormShape& s) {
  if (s.team > 32) return {static_cast<uint32_t>(s.count), static_cast<uint32_t>(s.team)};
  constexpr int threads = 128;
  return {static_cast<uint32_t>(divideUp(s.count, threads / s.team)), threads};
}

}  // namespace unsloth::cuda
