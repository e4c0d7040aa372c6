// The gradient of routing and the load balance of experts. All launches depend on shapes alone.
#include "context.h"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"
#include "vector.cuh"
#include "warp.cuh"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 256, warps = threads / 32;

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
  awaitPrior();
  extern __shared__ int32_t shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * warps + warp;
  int32_t* experts = shared + warp * 2 * p.choices;
  float* grads = reinterpret_cast<float*>(experts + p.choices);
  if (row >= p.rows) return;
  const int64_t at = row * p.ldLogits;
  const bool balanced = p.share != nullptr && (p.live == nullptr || row < *p.live);
  const auto logit = [&](int e) { return p.logits.at(at + e); };
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
    grads[j] = p.dWeight.at(slot * p.ldWeight);
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
  awaitPrior();
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
  launchDependent(context, "routeGrad", routeGradKernel, {static_cast<uint32_t>(divideUp(rows, warps)), threads, bytes}, p);
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
    launchDependent(context, "balanceLoss", balanceKernel, {1, threads}, balances, static_cast<int>(layers), totals,
                    static_cast<int>(experts), call.i(0), t == 2, t + layers == call.tensorCount, loss.f32(), share.f32());
  }
}

}  // namespace unsloth::cuda::ops
