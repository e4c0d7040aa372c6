#pragma once
#include "columnReduce.cuh"
#include "operands.h"

namespace unsloth::cuda {

/**
 * A norm over column groups: row s of `count` is group s mod groups of row s / groups. A team of 2ᵏ threads has one such row:
 * within a warp up to 32, else a block.
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
  bool live;
};

__device__ __forceinline__ NormRow normRow(const NormShape& s) {
  const int64_t at = s.team > 32 ? int64_t{blockIdx.x} : (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / s.team;
  const bool live = at < s.count;
  const uint32_t row = s.groups(live ? static_cast<uint32_t>(at) : 0u);
  return {row, live ? at - int64_t{row} * s.groups.divisor : 0, live};
}

/** Sums over a team, the same bits in each of its threads. `slot` numbers the sums of one kernel. */
template <int values>
__device__ __forceinline__ void teamSum(float (&v)[values], int team, int slot) {
  for (int offset = min(team, 32) / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  if (team <= 32) return;
  __shared__ float warps[2][values][32];
  const int lane = threadIdx.x % 32;
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < values; ++i) warps[slot][i][threadIdx.x / 32] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < values; ++i) v[i] = lane < team / 32 ? warps[slot][i][lane] : 0.0f;
  for (int offset = team / 64; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
#pragma unroll
  for (int i = 0; i < values; ++i) v[i] = __shfl_sync(0xffffffffu, v[i], 0);
}

/** Weights of `width` columns; ones where there are none. */
template <int width>
__device__ __forceinline__ void loadWeight(const NormShape& s, int64_t group, int64_t column, float (&w)[width]) {
  if (s.w.data == nullptr) {
#pragma unroll
    for (int i = 0; i < width; ++i) w[i] = 1;
    return;
  }
  s.w.load(group * s.weightStride + column, w);
  if (s.plusOne)
#pragma unroll
    for (int i = 0; i < width; ++i) w[i] += 1;
}

/** Where the launchers of norm.cu put their choice: threads of a team and of a block. */
struct NormLaunch {
  uint32_t blocks, threads;
};

inline NormLaunch launchOf(const NormShape& s) {
  if (s.team > 32) return {static_cast<uint32_t>(s.count), static_cast<uint32_t>(s.team)};
  constexpr int threads = 128;
  return {static_cast<uint32_t>(divideUp(s.count, threads / s.team)), threads};
}

}  // namespace unsloth::cuda
