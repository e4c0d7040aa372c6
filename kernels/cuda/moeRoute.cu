// Routing of tokens to experts: choice and stable sort by expert, in two launches that depend on shapes alone.
#include "context.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"
#include "warp.cuh"

namespace unsloth::cuda::ops {
namespace {

struct Routing {
  AnyFloats logits;
  int64_t ldLogits, ldPlace, ldWeight, ldToken, ldFirst;
  int rows, experts, choices, blockRows;
  bool renormalise;
  const int32_t* live;
  float* weight;
  int32_t *token, *place, *first;
  double* balance;
  int32_t* chosen;      // [rows, choices] experts
  float* chosenWeight;  // [rows, choices]
  int32_t* counts;      // [blocks, experts]
  int32_t* liveCounts;  // [blocks, experts]
  float* sums;          // [blocks, experts]: Σ p of the live rows
};

/** A number whose unsigned order is that of x; above 0, which marks an expert that is taken. A NaN counts as −∞. */
__device__ __forceinline__ uint32_t orderOf(float x) {
  const uint32_t bits = __float_as_uint(isnan(x) ? -INFINITY : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint32_t largestOf(uint32_t v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, v);
#else
  for (int offset = 16; offset > 0; offset /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
#endif
}

__device__ __forceinline__ uint32_t smallestOf(uint32_t v) { return ~largestOf(~v); }

/** A warp chooses for one row at a time: lane l holds the logits of the experts l, l + 32, …; lane j gets choice j. */
template <int warps, int held>
__global__ void __launch_bounds__(32 * warps) chooseKernel(const Routing p) {
  awaitPrior();
  constexpr int threads = 32 * warps;
  extern __shared__ int32_t shared[];  // counts and live counts; then the sums of p of each warp
  int32_t *counts = shared, *liveCounts = shared + p.experts;
  float* sums = reinterpret_cast<float*>(shared + 2 * p.experts);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int live = p.live == nullptr ? p.rows : min(p.rows, *p.live);
  const int firstRow = blockIdx.x * p.blockRows, lastRow = min(p.rows, firstRow + p.blockRows);
  for (int e = threadIdx.x; e < 2 * p.experts; e += threads) shared[e] = 0;
  __syncthreads();
  float ownSums[held] = {};
  for (int row = firstRow + warp; row < lastRow; row += warps) {
    float logits[held];
    uint32_t order[held];
#pragma unroll
    for (int i = 0; i < held; ++i) {
      const int e = lane + 32 * i;
      logits[i] = e < p.experts ? p.logits.at(row * p.ldLogits + e) : -INFINITY;
      order[i] = e < p.experts ? orderOf(logits[i]) : 0;
    }
    float top = 0, mine = 0;
    int expert = 0;
    for (int j = 0; j < p.choices; ++j) {
      uint32_t best = 0;
#pragma unroll
      for (int i = 0; i < held; ++i) best = max(best, order[i]);
      best = largestOf(best);
      uint32_t first = UINT32_MAX;  // the lowest number on a tie
#pragma unroll
      for (int i = held - 1; i >= 0; --i) first = order[i] == best ? lane + 32 * i : first;
      first = smallestOf(first);
      float value = 0;
#pragma unroll
      for (int i = 0; i < held; ++i)
        if (first == lane + 32 * i) value = logits[i], order[i] = 0;
      value = __shfl_sync(0xffffffffu, value, static_cast<int>(first % 32));
      if (j == 0) top = value;
      if (j == lane) mine = value, expert = static_cast<int>(first);
    }
    const bool chooses = lane < p.choices;
    const float power = chooses ? expf(mine - top) : 0.0f;
    float total = warpSum(power);
    if (!p.renormalise || p.balance != nullptr) {
      float all = 0;
#pragma unroll
      for (int i = 0; i < held; ++i) logits[i] = expf(logits[i] - top), all += logits[i];
      all = warpSum(all);
      if (!p.renormalise) total = all;
      if (row < live)
#pragma unroll
        for (int i = 0; i < held; ++i) ownSums[i] += logits[i] / all;
    }
    if (!chooses) continue;
    p.chosen[int64_t{row} * p.choices + lane] = expert;
    p.chosenWeight[int64_t{row} * p.choices + lane] = power / total;
    atomicAdd(counts + expert, 1);
    if (row < live) atomicAdd(liveCounts + expert, 1);
  }
#pragma unroll
  for (int i = 0; i < held; ++i)
    if (const int e = lane + 32 * i; p.balance != nullptr && e < p.experts) sums[warp * p.experts + e] = ownSums[i];
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += threads) {
    const int64_t at = int64_t{blockIdx.x} * p.experts + e;
    p.counts[at] = counts[e];
    if (p.balance == nullptr) continue;
    p.liveCounts[at] = liveCounts[e];
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums[w * p.experts + e];
    p.sums[at] = sum;
  }
}

/**
 * slot = first[expert] + choices of that expert in earlier blocks, in earlier warps' stretches of this one, and earlier in the
 * own. Every block sums up the counts of all blocks by itself, which saves a launch; `balance` is spread over the blocks.
 */
template <int warps>
__global__ void __launch_bounds__(32 * warps) placeKernel(const Routing p) {
  awaitPrior();
  constexpr int threads = 32 * warps;
  extern __shared__ int32_t shared[];
  int32_t *before = shared, *all = shared + p.experts, *next = shared + 2 * p.experts;  // next: [warps, experts]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x, blocks = gridDim.x;
  for (int e = threadIdx.x; e < (2 + warps) * p.experts; e += threads) shared[e] = 0;
  __syncthreads();
  const int firstRow = block * p.blockRows, count = (min(p.rows, firstRow + p.blockRows) - firstRow) * p.choices;
  const int64_t from = int64_t{firstRow} * p.choices;
  const int stretch = (count + 32 * warps - 1) / (32 * warps) * 32, start = min(count, warp * stretch),
            end = min(count, start + stretch);
  for (int i = start + lane; i < end; i += 32) atomicAdd(next + warp * p.experts + p.chosen[from + i], 1);
  // Experts by the threads of one part, blocks of rows by parts.
  const int parts = max(1, threads / p.experts), part = threadIdx.x / p.experts;
  for (int e = parts > 1 ? threadIdx.x % p.experts : threadIdx.x; e < p.experts && part < parts;
       e += parts > 1 ? p.experts : threads) {
    int total = 0, earlier = 0;
#pragma unroll 8
    for (int b = parts > 1 ? part : 0; b < blocks; b += parts) {
      const int own = p.counts[int64_t{b} * p.experts + e];
      total += own;
      earlier += b < block ? own : 0;
    }
    atomicAdd(all + e, total);
    atomicAdd(before + e, earlier);
  }
  __syncthreads();
  if (warp == 0) {
    int total = 0;
    for (int at = 0; at < p.experts; at += 32) {
      const int e = at + lane, own = e < p.experts ? all[e] : 0;
      int through = own;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, through, offset);
        if (lane >= offset) through += lower;
      }
      if (e < p.experts) {
        before[e] += total + through - own;
        if (block == 0) p.first[e * p.ldFirst] = total + through - own;
      }
      total += __shfl_sync(0xffffffffu, through, 31);
    }
    if (block == 0 && lane == 0) p.first[p.experts * p.ldFirst] = total;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += threads) {
    int slot = before[e];
    for (int w = 0; w < warps; ++w) {
      const int own = next[w * p.experts + e];
      next[w * p.experts + e] = slot;
      slot += own;
    }
  }
  __syncthreads();
  for (int at = start; at < end; at += 32) {
    __syncwarp();
    const int i = at + lane;
    const int expert = i < end ? p.chosen[from + i] : p.experts + lane;  // idle lanes have no peers
    const uint32_t peers = __match_any_sync(0xffffffffu, expert);
    int slot = 0;
    if (i < end) slot = next[warp * p.experts + expert] + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (i >= end) continue;
    if (__ffs(peers) - 1 == lane) next[warp * p.experts + expert] += __popc(peers);
    const int row = firstRow + i / p.choices;
    p.place[row * p.ldPlace + i % p.choices] = slot;
    p.token[slot * p.ldToken] = row;
    p.weight[slot * p.ldWeight] = p.chosenWeight[from + i];
  }
  if (p.balance == nullptr) return;
  for (int e = block + warp * blocks; e < p.experts; e += warps * blocks) {
    double alive = 0, sum = 0;
    for (int b = lane; b < blocks; b += 32) {
      alive += p.liveCounts[int64_t{b} * p.experts + e];
      sum += static_cast<double>(p.sums[int64_t{b} * p.experts + e]);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      alive += __shfl_xor_sync(0xffffffffu, alive, offset);
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (lane == 0) p.balance[e] = alive, p.balance[p.experts + e] = sum;
  }
}

/** Both launches; more experts than 256 take fewer warps, because each warp has counts of its own. */
template <int warps, int held>
void routeBlocks(const Routing& p, uint32_t blocks, const Context& context) {
  const size_t bytes = static_cast<size_t>((2 + warps) * p.experts) * 4;  // at most 40 KiB
  launchDependent(context, "route", chooseKernel<warps, held>, {blocks, 32 * warps, bytes}, p);
  launchDependent(context, "route", placeKernel<warps>, {blocks, 32 * warps, bytes}, p);
}

}  // namespace

void route(const Call& call, const Context& context) {
  const Operands args(call, "route", 6, 1, 0);
  const View& logits = args.matrix(5, "logits");
  const int64_t rows = logits.rows, experts = logits.cols;
  const View& place = args.typed(2, "place", DType::I32, rows);
  const int64_t k = place.cols;
  args.require(k >= 1 && k <= experts, "place has more columns than there are experts");
  args.require(rows * k < int64_t{1} << 30, "more than 2^30 choices");
  args.require(k <= 32 && experts <= 1024, "more than 32 choices or 1024 experts");
  const View& weight = args.typed(0, "weight", DType::F32, rows * k, 1);
  const View& token = args.typed(1, "token", DType::I32, rows * k, 1);
  const View& first = args.typed(3, "first", DType::I32, experts + 1, 1);
  const View balance = args.has(4) ? args.typed(4, "balance", DType::F64, 1, 2 * experts) : View{};

  // At most 128 blocks of rows, because each sums up the counts of all.
  const int64_t blockRows = std::max<int64_t>(16, divideUp(rows, 128)), blocks = std::max<int64_t>(1, divideUp(rows, blockRows));
  Routing p{};
  p.logits = AnyFloats(logits);
  p.ldLogits = logits.ld, p.ldPlace = place.ld, p.ldWeight = weight.ld, p.ldToken = token.ld, p.ldFirst = first.ld;
  p.rows = static_cast<int>(rows), p.experts = static_cast<int>(experts), p.choices = static_cast<int>(k);
  p.blockRows = static_cast<int>(blockRows);
  p.renormalise = call.i(0) != 0;
  p.live = context.live;
  p.weight = weight.f32(), p.token = token.i32(), p.place = place.i32(), p.first = first.i32(), p.balance = balance.f64();
  size_t at = 0;
  const auto take = [&]<class T>(T*& pointer, int64_t count) {
    pointer = scratch<T>(context, at, static_cast<size_t>(count), "route");
    at += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  };
  take(p.chosen, rows * k);
  take(p.chosenWeight, rows * k);
  take(p.counts, blocks * experts);
  take(p.liveCounts, blocks * experts);
  take(p.sums, blocks * experts);
  const auto grid = static_cast<uint32_t>(blocks);
  if (experts <= 32) routeBlocks<16, 1>(p, grid, context);
  else if (experts <= 64) routeBlocks<16, 2>(p, grid, context);
  else if (experts <= 128) routeBlocks<16, 4>(p, grid, context);
  else if (experts <= 256) routeBlocks<16, 8>(p, grid, context);
  else routeBlocks<8, 32>(p, grid, context);
}

}  // namespace unsloth::cuda::ops
