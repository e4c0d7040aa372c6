#include <algorithm>

#include "attentionTiles.cuh"
#include "element.cuh"
#include "launch.cuh"

namespace unsloth::cuda {
namespace {

constexpr int threads = 256, rowsPerBlock = 4;

/** delta[r,h] = Σ_c dO[r,hd+c]·o[r,hd+c]; `lanes` neighbouring lanes share a head, each with pieces of `width` elements. */
template <class T, int width>
__device__ void deltaOfRows(const AttentionArgs& a, int64_t firstRow, int64_t rows, int lanes) {
  const int64_t items = rows * a.heads * lanes;
  const int lane = threadIdx.x % lanes;
  for (int64_t base = 0; base < items; base += threads) {
    const int64_t item = (base + threadIdx.x) / lanes, row = firstRow + item / a.heads, head = item % a.heads;
    const bool is = base + threadIdx.x < items;
    float sum = 0;
    if (is) {
      const T* dO = static_cast<const T*>(a.dO.data) + row * a.dO.ld + head * a.headDim;
      const T* o = static_cast<const T*>(a.o.data) + row * a.o.ld + head * a.headDim;
      for (int c = lane * width; c < a.headDim; c += lanes * width) {
        const auto x = *reinterpret_cast<const Pack<T, width>*>(dO + c), y = *reinterpret_cast<const Pack<T, width>*>(o + c);
#pragma unroll
        for (int i = 0; i < width; ++i) sum += widen(x.at[i]) * widen(y.at[i]);
      }
    }
    for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (is && lane == 0) static_cast<float*>(a.delta.data)[row * a.delta.ld + head] = sum;
  }
}

template <class T>
__device__ void clearRow(const View& v, int64_t row) {
  T* to = static_cast<T*>(v.data) + row * v.ld;
  for (int64_t c = threadIdx.x; c < v.cols; c += threads) to[c] = narrow<T>(0.0f);
}

template <class T, int width>
__global__ void __launch_bounds__(threads) deltaKernel(const __grid_constant__ AttentionArgs a, int lanes) {
  awaitPrior();
  __shared__ unsigned covered;  // bit i: row i of the block's rows has a query; bit 16 + i: a key
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rowsPerBlock;
  if (threadIdx.x == 0) covered = 0;
  __syncthreads();
  unsigned mine = 0;
  for (int j = threadIdx.x; j < a.sequences; j += threads) {
    const AttentionSequence s(a, j);
#pragma unroll
    for (int i = 0; i < rowsPerBlock; ++i) {
      mine |= static_cast<unsigned>(first + i >= s.qStart && first + i < s.qStart + s.queries) << i;
      mine |= static_cast<unsigned>(first + i >= s.kvStart && first + i < s.kvStart + s.keys) << (16 + i);
    }
  }
  if (mine != 0) atomicOr(&covered, mine);
  if (first < a.q.rows) deltaOfRows<T, width>(a, first, min(static_cast<int64_t>(rowsPerBlock), a.q.rows - first), lanes);
  __syncthreads();
  for (int i = 0; i < rowsPerBlock; ++i) {
    if (first + i < a.q.rows && (covered >> i & 1) == 0) clearRow<T>(a.dq, first + i);
    if (first + i < a.k.rows && (covered >> (16 + i) & 1) == 0) clearRow<T>(a.dk, first + i), clearRow<T>(a.dv, first + i);
  }
}

}  // namespace

void attentionDelta(const AttentionArgs& args, const Context& context) {
  const auto blocks = static_cast<unsigned>((std::max(args.q.rows, args.k.rows) + rowsPerBlock - 1) / rowsPerBlock);
  withType(args.q.dtype, "attentionGrad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = args.headDim % perVector<T> == 0 && vectorised(args.o) && vectorised(args.dO);
    const int pieces = wide ? args.headDim / perVector<T> : args.headDim;
    int lanes = 1;
    while (lanes < pieces && lanes < 32) lanes *= 2;
    if (wide) launchDependent(context, "running attentionGrad", deltaKernel<T, perVector<T>>, {blocks, threads}, args, lanes);
    else launchDependent(context, "running attentionGrad", deltaKernel<T, 1>, {blocks, threads}, args, lanes);
  });
}

}  // namespace unsloth::cuda
