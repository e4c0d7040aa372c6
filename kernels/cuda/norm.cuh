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
  int team, teamLog;
  bool plusOne;
  AnyFloats w, b;  // data == nullptr: absent
};

struct NormRow {
  int64_t row, group;
  int last;  // columns, 0 behind the last row
};

/** The row of a thread's team in the `block`th part of the rows that a block of threads takes at once. */
__device__ __forceinline__ NormRow normRow(const NormShape& s, uint32_t block) {
  const uint32_t at = block * (blockDim.x >> s.teamLog) + (threadIdx.x >> s.teamLog);
  if (at >= s.count) return {0, 0, 0};
  const uint32_t row = s.groups(at);
  return {row, at - row * s.groups.divisor, static_cast<int>(s.width)};
}

__device__ __forceinline__ int normLane(const NormShape& s) { return static_cast<int>(threadIdx.x) & (s.team - 1); }

/** Sums over a team, the same bits in each of its threads. Every use in a kernel has a `slot` of its own, in a loop two. */
template <int values, int slot = 0>
__device__ __forceinline__ void teamSum(float (&v)[values], int team, int turn = 0) {
  for (int offset = min(team, 32) / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  if (team <= 32) return;
  __shared__ float warps[2][values][32];
  const int lane = threadIdx.x % 32;
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < values; ++i) warps[turn][i][threadIdx.x / 32] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < values; ++i) v[i] = lane < team / 32 ? warps[turn][i][lane] : 0.0f;
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

/** The shape of a norm over x with the parameters at operands `weightAt` and `biasAt` (−1: none). */
inline NormShape shapeOf(const Operands& args, const Call& call, const View& x, int64_t groups, int64_t weightAt, int64_t biasAt,
                  bool plusOne) {
  if (groups < 1 || x.cols % groups != 0)
    args.refuse(std::to_string(groups) + " groups do not divide x, which is " + Operands::describe(x));
  if (x.rows * groups >= int64_t{1} << 31) args.refuse("more than 2^31 rows and column groups");
  NormShape s{x.rows * groups, x.cols / groups, 0, Division(static_cast<uint32_t>(groups)), 1, 0, plusOne, {}, {}};
  const auto parameter = [&](int64_t i, const char* name) {
    const View& v = args.matrix(i, name, 1);
    if (v.cols != s.width && v.cols != x.cols)
      args.refuse(std::string(name) + " is " + Operands::describe(v) + ", expected " + std::to_string(s.width) + " or " +
                  std::to_string(x.cols) + " columns");
    const int64_t stride = v.cols == x.cols && groups > 1 ? s.width : 0;
    if (biasAt >= 0 && args.has(weightAt) && args.has(biasAt))
      args.require(call.t(weightAt).cols == call.t(biasAt).cols, "w and b differ in width");
    s.weightStride = stride;
    return AnyFloats(v);
  };
  if (args.has(weightAt)) s.w = parameter(weightAt, "w");
  if (biasAt >= 0 && args.has(biasAt)) s.b = parameter(biasAt, "b");
  return s;
}

constexpr int mostTeam = 512;

/** Whether rows fit in registers, `most` vectors of `width` to a thread: every group then starts at a vector, and so do
 * parameters. */
inline bool fits(const NormShape& s, std::initializer_list<View> rows, int most, int width) {
  if (s.width % width != 0 || s.width > int64_t{mostTeam} * most * width) return false;
  for (const View& v : rows)
    if (!vectorised(v, width)) return false;
  for (const AnyFloats& p : {s.w, s.b})
    if (p.data != nullptr && reinterpret_cast<uintptr_t>(p.data) % 16 != 0) return false;
  return true;
}

/** Constants of a kernel. */
template <int heldEach, int widthEach>
struct NormForm {
  static constexpr int held = heldEach, width = widthEach;
};

/** Gives every row the smallest team of at least `least` and at most `most` threads, `each` vectors to a thread. */
inline void takeTeam(NormShape& s, int64_t vectors, int64_t each, int least = 1, int most = mostTeam) {
  s.team = 1, s.teamLog = 0;
  while (s.team < least || (s.team < most && s.team * each < vectors)) s.team *= 2, ++s.teamLog;
}

/** The team of a row that is visited element by element. */
inline void takeTeamOfElements(NormShape& s) { takeTeam(s, s.width, 4, 1, 256); }

struct NormLaunch {
  uint32_t blocks, threads;
};

/** Blocks that take their rows at once; a team within a warp shares its block. */
inline NormLaunch launchOf(const NormShape& s, uint32_t threads = 128) {
  if (s.team > 32) return {static_cast<uint32_t>(s.count), static_cast<uint32_t>(s.team)};
  return {static_cast<uint32_t>(divideUp(s.count, threads / s.team)), threads};
}

}  // namespace unsloth::cuda
