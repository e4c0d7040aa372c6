// Routing of tokens to experts: choice, stable sort by expert, gradient, load balance. All launches depend on shapes alone.
#include "context.h"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 256, warps = threads / 32;

__device__ __forceinline__ float element(const AnyFloats& v, int64_t i) {
  float value[1];
  v.load(i, value);
  return value[0];
}

__device__ __forceinline__ float warpSum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

__device__ __forceinline__ float warpMax(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

struct Routing {
  AnyFloats logits;
  int64_t ldLogits, ldPlace, ldWeight, ldToken, ldFirst;
  int rows, experts, choices, blockRows, blocks;
  bool renormalise;
  const int32_t* live;
  float* weight;
  int32_t *token, *place, *first;
  double* balance;
  int32_t* chosen;      // [rows, choices] experts
  float* chosenWeight;  // [rows, choices]
  int32_t* counts;      // [blocks, experts]: of all rows; after totalKernel: choices of that expert in earlier blocks
  int32_t* liveCounts;  // [blocks, experts]
  double* sums;         // [blocks, experts]: Σ p of the live rows
};

/** Rows of this run that are no padding. */
__device__ __forceinline__ int liveRows(const Routing& p) { return p.live == nullptr ? p.rows : min(p.rows, *p.live); }

/** A warp chooses for one row at a time: the next expert is the largest of those that come after the last one chosen. */
__global__ void __launch_bounds__(threads) chooseKernel(const Routing p) {
  extern __shared__ int32_t shared[];  // counts, live counts, then the largest logit and the Σ exp of each row
  int32_t *counts = shared, *liveCounts = shared + p.experts;
  float *tops = reinterpret_cast<float*>(shared + 2 * p.experts), *totals = tops + p.blockRows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, live = liveRows(p);
  const int firstRow = blockIdx.x * p.blockRows, lastRow = min(p.rows, firstRow + p.blockRows);
  for (int e = threadIdx.x; e < 2 * p.experts; e += threads) shared[e] = 0;
  __syncthreads();
  for (int row = firstRow + warp; row < lastRow; row += warps) {
    const int64_t at = row * p.ldLogits;
    float top = 0, chosenTotal = 0, last = INFINITY;
    int lastExpert = -1;
    for (int j = 0; j < p.choices; ++j) {
      float best = -INFINITY;
      int expert = INT32_MAX;
      for (int e = lane; e < p.experts; e += 32) {
        const float value = element(p.logits, at + e), v = isnan(value) ? -INFINITY : value;
        const bool free = v < last || (v == last && e > lastExpert);
        if (free && (expert == INT32_MAX || v > best)) best = v, expert = e;
      }
      for (int offset = 16; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, offset);
        const int otherExpert = __shfl_xor_sync(0xffffffffu, expert, offset);
        if (otherExpert != INT32_MAX && (expert == INT32_MAX || other > best || (other == best && otherExpert < expert)))
          best = other, expert = otherExpert;
      }
      if (j == 0) top = element(p.logits, at + expert);
      const float power = expf(element(p.logits, at + expert) - top);
      chosenTotal += power;
      last = best, lastExpert = expert;
      if (lane == 0) {
        p.chosen[int64_t{row} * p.choices + j] = expert;
        p.chosenWeight[int64_t{row} * p.choices + j] = power;
        atomicAdd(counts + expert, 1);
        if (row < live) atomicAdd(liveCounts + expert, 1);
      }
    }
    float total = chosenTotal;
    if (!p.renormalise || p.balance != nullptr) {
      float sum = 0;
      for (int e = lane; e < p.experts; e += 32) sum += expf(element(p.logits, at + e) - top);
      sum = warpSum(sum);
      if (!p.renormalise) total = sum;
      if (lane == 0) tops[row - firstRow] = top, totals[row - firstRow] = sum;
    }
    __syncwarp();
    for (int j = lane; j < p.choices; j += 32) p.chosenWeight[int64_t{row} * p.choices + j] /= total;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += threads) {
    p.counts[int64_t{blockIdx.x} * p.experts + e] = counts[e];
    if (p.balance == nullptr) continue;
    p.liveCounts[int64_t{blockIdx.x} * p.experts + e] = liveCounts[e];
    double sum = 0;
    for (int row = firstRow; row < min(lastRow, live); ++row)
      sum += static_cast<double>(expf(element(p.logits, row * p.ldLogits + e) - tops[row - firstRow]) / totals[row - firstRow]);
    p.sums[int64_t{blockIdx.x} * p.experts + e] = sum;
  }
}

/** One block: counts become the choices before each block, `first` and `balance` follow. A warp has one expert at a time. */
__global__ void __launch_bounds__(1024) totalKernel(const Routing p) {
  extern __shared__ int32_t totals[];
  const int lane = threadIdx.x % 32;
  for (int e = threadIdx.x / 32; e < p.experts; e += 32) {
    int before = 0, alive = 0;
    double sum = 0;
    for (int start = 0; start < p.blocks; start += 32) {
      const int block = start + lane;
      const int64_t at = int64_t{block} * p.experts + e;
      const int own = block < p.blocks ? p.counts[at] : 0;
      int through = own;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, through, offset);
        if (lane >= offset) through += lower;
      }
      if (block < p.blocks) {
        p.counts[at] = before + through - own;
        if (p.balance != nullptr) alive += p.liveCounts[at], sum += p.sums[at];
      }
      before += __shfl_sync(0xffffffffu, through, 31);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      alive += __shfl_xor_sync(0xffffffffu, alive, offset);
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (lane > 0) continue;
    totals[e] = before;
    if (p.balance != nullptr) p.balance[e] = alive, p.balance[p.experts + e] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int before = 0;
  for (int start = 0; start < p.experts; start += 32) {
    const int e = start + lane, own = e < p.experts ? totals[e] : 0;
    int through = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int lower = __shfl_up_sync(0xffffffffu, through, offset);
      if (lane >= offset) through += lower;
    }
    if (e < p.experts) p.first[e * p.ldFirst] = before + through - own;
    before += __shfl_sync(0xffffffffu, through, 31);
  }
  if (lane == 0) p.first[p.experts * p.ldFirst] = before;
}

/** slot = first[expert] + choices of that expert in earlier blocks and earlier in this one. */
__global__ void __launch_bounds__(threads) placeKernel(const Routing p) {
  extern __shared__ int32_t experts[];
  const int firstRow = blockIdx.x * p.blockRows, count = (min(p.rows, firstRow + p.blockRows) - firstRow) * p.choices;
  const int64_t from = int64_t{firstRow} * p.choices;
  for (int i = threadIdx.x; i < count; i += threads) experts[i] = p.chosen[from + i];
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += threads) {
    const int expert = experts[i], row = firstRow + i / p.choices;
    int slot = p.first[expert * p.ldFirst] + p.counts[int64_t{blockIdx.x} * p.experts + expert];
    for (int k = 0; k < i; ++k) slot += experts[k] == expert;
    p.place[row * p.ldPlace + i % p.choices] = slot;
    p.token[slot * p.ldToken] = row;
    p.weight[slot * p.ldWeight] = p.chosenWeight[from + i];
  }
}

struct RoutingGrad {
  void* dLogits;
  DType dtype;
  AnyFloats logits, dWeight;
  const int32_t *place, *first, *live;
  const float *share, *shareWeight;
  int64_t ldOut, ldLogits, ldWeight, ldPlace;
  int rows, experts, choices;
  bool renormalise;
};

__device__ __forceinline__ void put(const RoutingGrad& p, int64_t i, float value) {
  if (p.dtype == DType::BF16) static_cast<bf16*>(p.dLogits)[i] = narrow<bf16>(value);
  else if (p.dtype == DType::F16) static_cast<__half*>(p.dLogits)[i] = narrow<__half>(value);
  else static_cast<float*>(p.dLogits)[i] = value;
}

/** A warp for each row. The choices of its row stand in shared memory: expert and dWeight. */
__global__ void __launch_bounds__(threads) routeGradKernel(const RoutingGrad p) {
  extern __shared__ int32_t shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * warps + warp;
  int32_t* experts = shared + warp * 2 * p.choices;
  float* grads = reinterpret_cast<float*>(experts + p.choices);
  if (row >= p.rows) return;
  const int64_t at = row * p.ldLogits;
  const bool balanced = p.share != nullptr && (p.live == nullptr || row < *p.live);
  const auto logit = [&](int e) { return element(p.logits, at + e); };
  float top = -INFINITY;
  for (int e = lane; e < p.experts; e += 32) top = fmaxf(top, logit(e));
  top = warpMax(top);
  float total = 0, balanceMean = 0;
  for (int e = lane; e < p.experts; e += 32) {
    const float power = expf(logit(e) - top);
    total += power;
    if (balanced) balanceMean += power * p.share[e];
  }
  total = warpSum(total);
  balanceMean = warpSum(balanceMean) / total;
  float chosenTotal = 0, mean = 0;
  for (int j = lane; j < p.choices; j += 32) {
    const int slot = p.place[row * p.ldPlace + j];
    int low = 0, high = p.experts - 1;  // the last expert that begins at or before the slot
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (p.first[middle] <= slot) low = middle;
      else high = middle - 1;
    }
    experts[j] = low;
    grads[j] = element(p.dWeight, slot * p.ldWeight);
    const float power = expf(logit(low) - top);
    chosenTotal += power;
    mean += power * grads[j];
  }
  chosenTotal = warpSum(chosenTotal);
  const float base = p.renormalise ? chosenTotal : total;
  mean = warpSum(mean) / base;
  __syncwarp();
  for (int e = lane; e < p.experts; e += 32) {
    const float power = expf(logit(e) - top);
    float d = p.renormalise ? 0 : -power / total * mean;
    if (balanced) d += *p.shareWeight * (power / total) * (p.share[e] - balanceMean);
    for (int j = 0; j < p.choices; ++j)
      if (experts[j] == e) d += power / base * (p.renormalise ? grads[j] - mean : grads[j]);
    put(p, row * p.ldOut + e, d);
  }
}

struct Balances {
  static constexpr int most = 128;  // layers of one launch
  const double* layer[most];
};

/** One block; totals (fp64) collect over launches of at most Balances::most layers, the last of which writes the results. */
__global__ void __launch_bounds__(threads) balanceKernel(const Balances balances, int layers, double* totals, int experts,
                                                         int choices, bool first, bool last, float* loss, float* share) {
  __shared__ double parts[threads];
  for (int i = threadIdx.x; i < 2 * experts; i += threads) {
    double sum = first ? 0 : totals[i];
    for (int l = 0; l < layers; ++l) sum += balances.layer[l][i];
    totals[i] = sum;
  }
  if (!last) return;
  __syncthreads();
  const auto total = [&](auto&& term) {
    double sum = 0;
    for (int e = threadIdx.x; e < experts; e += threads) sum += term(e);
    __syncthreads();
    parts[threadIdx.x] = sum;
    for (int half = threads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    __syncthreads();
    return parts[0];
  };
  const double rows = fmax(1.0, total([&](int e) { return totals[e]; }) / choices);
  const double sum = total([&](int e) { return totals[e] / rows * (totals[experts + e] / rows); });
  for (int e = threadIdx.x; e < experts; e += threads) share[e] = static_cast<float>(experts * totals[e] / (rows * rows));
  if (threadIdx.x == 0) *loss = static_cast<float>(experts * sum);
}

}  // namespace

void route(const Call& call, const Context& context) {
  const Operands args(call, "route", 6, 1, 0);
  const View& logits = args.matrix(5, "logits");
  const int64_t rows = logits.rows, experts = logits.cols;
  const View& place = args.typed(2, "place", DType::I32, rows);
  const int64_t k = place.cols;
  args.require(k >= 1 && k <= experts, "place has more columns than there are experts");
  args.require(rows * k < int64_t{1} << 30 && experts <= 4096, "more than 2^30 choices or 4096 experts");
  const View& weight = args.typed(0, "weight", DType::F32, rows * k, 1);
  const View& token = args.typed(1, "token", DType::I32, rows * k, 1);
  const View& first = args.typed(3, "first", DType::I32, experts + 1, 1);
  const View balance = args.has(4) ? args.typed(4, "balance", DType::F64, 1, 2 * experts) : View{};

  // At most 256 blocks of rows, so that one block can sum them up; few choices in each, because placing compares them in pairs.
  const int64_t blockRows = std::max<int64_t>(32, divideUp(rows, 256)), blocks = std::max<int64_t>(1, divideUp(rows, blockRows));
  Routing p{};
  p.logits = AnyFloats(logits);
  p.ldLogits = logits.ld, p.ldPlace = place.ld, p.ldWeight = weight.ld, p.ldToken = token.ld, p.ldFirst = first.ld;
  p.rows = static_cast<int>(rows), p.experts = static_cast<int>(experts), p.choices = static_cast<int>(k);
  p.blockRows = static_cast<int>(blockRows), p.blocks = static_cast<int>(blocks);
  p.renormalise = call.i(0) != 0;
  p.live = context.live;
  p.weight = weight.f32(), p.token = token.i32(), p.place = place.i32(), p.first = first.i32(), p.balance = balance.f64();
  size_t at = 0;
  const auto take = [&]<class T>(T*& pointer, int64_t count) {
    pointer = scratch<T>(context, at, static_cast<size_t>(count), "route");
    at += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  };
  take(p.sums, blocks * experts);
  take(p.chosen, rows * k);
  take(p.chosenWeight, rows * k);
  take(p.counts, blocks * experts);
  take(p.liveCounts, blocks * experts);

  const size_t chooseShared = static_cast<size_t>(2 * experts + 2 * blockRows) * 4,
               placeShared = static_cast<size_t>(blockRows * k) * 4;
  if (chooseShared > 48 * 1024 || placeShared > 48 * 1024)
    args.refuse("too many rows, experts or choices for the shared memory of a block");
  const auto grid = static_cast<uint32_t>(blocks);
  chooseKernel<<<grid, threads, chooseShared, context.stream>>>(p);
  checkLaunch("route");
  totalKernel<<<1, 1024, static_cast<size_t>(experts) * 4, context.stream>>>(p);
  checkLaunch("route");
  placeKernel<<<grid, threads, placeShared, context.stream>>>(p);
  checkLaunch("route");
}

void routeGrad(const Call& call, const Context& context) {
  const Operands args(call, "routeGrad", 5, 1, 0);
  const View& logits = args.matrix(2, "logits");
  const int64_t rows = logits.rows, experts = logits.cols;
  const View& place = args.typed(3, "place", DType::I32, rows);
  const int64_t k = place.cols;
  const View& dLogits = args.matrix(0, "dLogits", rows, experts);
  const View& dWeight = args.matrix(1, "dWeight", rows * k, 1);
  if (rows == 0) return;
  RoutingGrad p{};
  p.dLogits = dLogits.data, p.dtype = dLogits.dtype, p.ldOut = dLogits.ld;
  p.logits = AnyFloats(logits), p.ldLogits = logits.ld;
  p.dWeight = AnyFloats(dWeight), p.ldWeight = dWeight.ld;
  p.place = place.i32(), p.ldPlace = place.ld;
  p.first = args.list<int32_t>(4, "first", DType::I32, experts + 1);
  p.live = context.live;
  if (args.has(5)) {
    p.share = args.typed(5, "share", DType::F32, 1, experts).f32();
    p.shareWeight = args.list<float>(6, "shareWeight", DType::F32, 1);
  }
  p.rows = static_cast<int>(rows), p.experts = static_cast<int>(experts), p.choices = static_cast<int>(k);
  p.renormalise = call.i(0) != 0;
  const size_t bytes = static_cast<size_t>(warps * 2 * k) * 4;
  if (bytes > 48 * 1024) args.refuse("too many choices for the shared memory of a block");
  routeGradKernel<<<static_cast<uint32_t>(divideUp(rows, warps)), threads, bytes, context.stream>>>(p);
  checkLaunch("routeGrad");
}

void balanceLoss(const Call& call, const Context& context) {
  const Operands args(call, "balanceLoss", 3, 1, 0);
  const View& share = args.typed(1, "share", DType::F32, 1);
  const int64_t experts = share.cols;
  const View& loss = args.typed(0, "loss", DType::F32, 1, 1);
  args.require(call.i(0) >= 1, "choices must be positive");
  auto* totals = scratch<double>(context, 0, static_cast<size_t>(2 * experts), "balanceLoss");
  for (int64_t t = 2; t < call.tensorCount; t += Balances::most) {
    const int64_t layers = std::min<int64_t>(Balances::most, call.tensorCount - t);
    Balances balances{};
    for (int64_t l = 0; l < layers; ++l) balances.layer[l] = args.typed(t + l, "balance", DType::F64, 1, 2 * experts).f64();
    balanceKernel<<<1, threads, 0, context.stream>>>(balances, static_cast<int>(layers), totals, static_cast<int>(experts),
                                                     call.i(0), t == 2, t + layers == call.tensorCount, loss.f32(), share.f32());
    checkLaunch("balanceLoss");
  }
}

}  // namespace unsloth::cuda::ops
