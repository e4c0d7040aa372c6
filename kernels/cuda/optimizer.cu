// The norm of all gradients and AdamW over flat parameters. Bytes per parameter: sumSquares 4, adamw 28.
#include "map.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda::ops {
namespace {

constexpr int threads = 256, unroll = 4;

/** Sum of a block's numbers in a fixed order; thread 0 has it. */
__device__ double blockSum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __shared__ double warps[threads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int i = 0; i < threads / 32; ++i) total += warps[i];
  return total;
}

template <int width>
__device__ __forceinline__ void addSquares(const float (&v)[width], double (&sums)[unroll], int at) {
#pragma unroll
  for (int i = 0; i < width; ++i) sums[at] = fma(static_cast<double>(v[i]), static_cast<double>(v[i]), sums[at]);
}

/** partial[block] = Σ x² over the vectors block, block + blocks, …, in fp64. */
template <int width>
__global__ void __launch_bounds__(threads)
    squaresKernel(double* partial, const AnyFloats x, int64_t rows, int64_t perRow, int64_t ld) {
  double sums[unroll] = {};
  const int64_t vectors = rows * perRow, step = int64_t{gridDim.x} * threads * unroll;
  for (int64_t first = int64_t{blockIdx.x} * threads * unroll + threadIdx.x; first < vectors; first += step) {
    float value[unroll][width] = {};
#pragma unroll
    for (int u = 0; u < unroll; ++u)
      if (const int64_t i = first + u * threads; i < vectors) {
        const int64_t row = rows == 1 ? 0 : i / perRow;
        x.load(row * ld + (i - row * perRow) * width, value[u]);
      }
#pragma unroll
    for (int u = 0; u < unroll; ++u) addSquares(value[u], sums, u);
  }
  const double total = blockSum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(threads) squaresTotalKernel(double* out, const double* partial, int blocks, bool accumulate) {
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += threads) sum += partial[i];
  const double total = blockSum(sum);
  if (threadIdx.x == 0) *out = accumulate ? *out + total : total;
}

/** Constants of one step, folded as torch's single-tensor form does. */
struct Step {
  float gradientScale, keep, oneMinusBeta1, beta2, oneMinusBeta2, rate, rootC2, eps;
};

/** in and out: p, m, v; in also grad. */
struct AdamW : MapFunction {
  const double* scalars;
  int group;
  double beta1, beta2, eps, weightDecay;
  Step step;

  /** One thread of a block computes the constants in fp64. */
  __device__ __forceinline__ void ready() {
    __shared__ Step shared;
    if (threadIdx.x == 0) {
      const double rate = scalars[3 + group];
      shared = {static_cast<float>(scalars[0]),       static_cast<float>(1 - rate * weightDecay),
                static_cast<float>(1 - beta1),        static_cast<float>(beta2),
                static_cast<float>(1 - beta2),        static_cast<float>(rate / scalars[1]),
                static_cast<float>(sqrt(scalars[2])), static_cast<float>(eps)};
    }
    __syncthreads();
    step = shared;
  }

  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[4][width], float (&out)[3][width]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float g = step.gradientScale * in[3][i];
      const float mean = fmaf(step.oneMinusBeta1, g - in[1][i], in[1][i]);
      const float square = fmaf(step.oneMinusBeta2 * g, g, step.beta2 * in[2][i]);
      const float root = sqrtf(square) / step.rootC2 + step.eps;
      out[0][i] = fmaf(-step.rate, mean / root, step.keep * in[0][i]);
      out[1][i] = mean;
      out[2][i] = square;
    }
  }
};

}  // namespace

void sumSquares(const Call& call, const Context& context) {
  const Operands args(call, "sumSquares", 2, 2, 0);
  const View& x = args.matrix(1, "x");
  const int64_t slot = call.i(0);
  args.require(slot >= 0, "slot is negative");
  double* out = const_cast<double*>(args.list<double>(0, "out", DType::F64, slot + 1)) + slot;
  const bool flat = gapless(x);
  const int64_t rows = flat ? 1 : x.rows, cols = flat ? x.rows * x.cols : x.cols;
  constexpr int width = 4;
  View row = x;
  row.cols = cols, row.ld = flat ? cols : x.ld;
  const bool fast = vectorised(row, width);
  const int64_t perRow = fast ? cols / width : cols;
  const int most = 8 * context.gpu->multiprocessors;
  const int blocks = static_cast<int>(std::clamp<int64_t>(divideUp(rows * perRow, threads * unroll), 1, most));
  auto* partial = scratch<double>(context, 0, static_cast<size_t>(blocks), "sumSquares");
  if (fast) squaresKernel<width><<<blocks, threads, 0, context.stream>>>(partial, AnyFloats(x), rows, perRow, row.ld);
  else squaresKernel<1><<<blocks, threads, 0, context.stream>>>(partial, AnyFloats(x), rows, perRow, row.ld);
  checkLaunch("sumSquares");
  squaresTotalKernel<<<1, threads, 0, context.stream>>>(out, partial, blocks, call.i(1) != 0);
  checkLaunch("sumSquares");
}

void adamw(const Call& call, const Context& context) {
  const Operands args(call, "adamw", 5, 1, 4);
  const View& p = args.typed(0, "p", DType::F32);
  const View& m = args.typed(1, "m", DType::F32, p.rows, p.cols);
  const View& v = args.typed(2, "v", DType::F32, p.rows, p.cols);
  const View& grad = args.typed(3, "grad", DType::F32, p.rows, p.cols);
  const int group = call.i(0);
  args.require(group >= 0, "group is negative");
  const auto* scalars = args.list<double>(4, "scalars", DType::F64, 4 + group);
  mapElements<float, 4, 3>(context, "adamw", {p, m, v}, {p, m, v, grad},
                           AdamW{{}, scalars, group, call.f(0), call.f(1), call.f(2), call.f(3), {}});
}

}  // namespace unsloth::cuda::ops
