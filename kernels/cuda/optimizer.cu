// The norm of all gradients, and optimizers over flat fp32 parameters. Bytes per parameter: sumSquares 4, adamw 28, lion 20, sgd
// 20 (12 without momentum).
#include "launch.cuh"
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
  awaitPrior();
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
  awaitPrior();
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
    if (isnan(step.gradientScale)) {  // a spoilt step changes nothing
#pragma unroll
      for (int k = 0; k < 3; ++k)
#pragma unroll
        for (int i = 0; i < width; ++i) out[k][i] = in[k][i];
      return;
    }
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

/** Gradient scale, learning rate and 1 − rate·decay, read once for each block. */
struct Rates {
  float gradientScale, rate, keep;
};

__device__ __forceinline__ Rates readRates(const double* scalars, int group, double weightDecay) {
  __shared__ Rates shared;
  if (threadIdx.x == 0) {
    const double rate = scalars[3 + group];
    shared = {static_cast<float>(scalars[0]), static_cast<float>(rate), static_cast<float>(1 - rate * weightDecay)};
  }
  __syncthreads();
  return shared;
}

/** in: p, m, grad; out: p, m. Products and sums are rounded one by one, as on the CPU: the sign decides. */
struct Lion : MapFunction {
  const double* scalars;
  int group;
  float beta1, beta2;
  double weightDecay;
  Rates rates;

  __device__ __forceinline__ void ready() { rates = readRates(scalars, group, weightDecay); }

  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[3][width], float (&out)[2][width]) const {
    const bool spoilt = isnan(rates.gradientScale);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float p = in[0][i], m = in[1][i], g = __fmul_rn(rates.gradientScale, in[2][i]);
      const auto mixed = [&](float a) { return __fadd_rn(__fmul_rn(m, a), __fmul_rn(1.0f - a, g)); };
      const float way = mixed(beta1), direction = way > 0 ? 1.0f : way < 0 ? -1.0f : 0.0f;
      out[0][i] = spoilt ? p : __fadd_rn(__fmul_rn(p, rates.keep), -__fmul_rn(rates.rate, direction));
      out[1][i] = spoilt ? m : mixed(beta2);
    }
  }
};

/** in: p, grad, and m when there is momentum; out: p, and m. */
template <int outs>
struct Sgd : MapFunction {
  const double* scalars;
  int group;
  float momentum, decay;
  Rates rates;

  __device__ __forceinline__ void ready() { rates = readRates(scalars, group, 0); }

  template <int width>
  __device__ __forceinline__ void operator()(int64_t, int64_t, const float (&in)[1 + outs][width],
                                             float (&out)[outs][width]) const {
    const bool spoilt = isnan(rates.gradientScale);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      float g = __fadd_rn(__fmul_rn(rates.gradientScale, in[1][i]), __fmul_rn(decay, in[0][i]));
      if constexpr (outs == 2) {
        g = __fadd_rn(__fmul_rn(momentum, in[outs][i]), g);
        out[outs - 1][i] = spoilt ? in[outs][i] : g;
      }
      out[0][i] = spoilt ? in[0][i] : __fadd_rn(in[0][i], -__fmul_rn(rates.rate, g));
    }
  }
};

/** The scalars of an optimizer's command, and its group among them. */
struct Scalars {
  const double* list;
  int group;
};

Scalars scalarsOf(const Operands& args, const Call& call, int64_t operand) {
  const int group = call.i(0);
  args.require(group >= 0, "group is negative");
  return {args.list<double>(operand, "scalars", DType::F64, 4 + group), group};
}

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
  if (fast) launchDependent(context, "sumSquares", squaresKernel<width>, {blocks, threads}, partial, AnyFloats(x), rows, perRow,
                            row.ld);
  else launchDependent(context, "sumSquares", squaresKernel<1>, {blocks, threads}, partial, AnyFloats(x), rows, perRow, row.ld);
  launchDependent(context, "sumSquares", squaresTotalKernel, {1, threads}, out, partial, blocks, call.i(1) != 0);
}

void adamw(const Call& call, const Context& context) {
  const Operands args(call, "adamw", 5, 1, 4);
  const View& p = args.typed(0, "p", DType::F32);
  const View& m = args.typed(1, "m", DType::F32, p.rows, p.cols);
  const View& v = args.typed(2, "v", DType::F32, p.rows, p.cols);
  const View& grad = args.typed(3, "grad", DType::F32, p.rows, p.cols);
  const Scalars scalars = scalarsOf(args, call, 4);
  mapElements<float, 4, 3>(context, "adamw", {p, m, v}, {p, m, v, grad},
                           AdamW{{}, scalars.list, scalars.group, call.f(0), call.f(1), call.f(2), call.f(3), {}});
}

void lion(const Call& call, const Context& context) {
  const Operands args(call, "lion", 4, 1, 3);
  const View& p = args.typed(0, "p", DType::F32, 1);
  const View& m = args.typed(1, "m", DType::F32, 1, p.cols);
  const View& grad = args.typed(2, "grad", DType::F32, 1, p.cols);
  const Scalars scalars = scalarsOf(args, call, 3);
  const auto beta1 = static_cast<float>(call.f(0)), beta2 = static_cast<float>(call.f(1));
  mapElements<float, 3, 2>(context, "lion", {p, m}, {p, m, grad},
                           Lion{{}, scalars.list, scalars.group, beta1, beta2, call.f(2), {}});
}

void sgd(const Call& call, const Context& context) {
  const Operands args(call, "sgd", 4, 1, 2);
  const View& p = args.typed(0, "p", DType::F32, 1);
  const View& grad = args.typed(2, "grad", DType::F32, 1, p.cols);
  const Scalars scalars = scalarsOf(args, call, 3);
  const auto momentum = static_cast<float>(call.f(0)), decay = static_cast<float>(call.f(1));
  if (!args.has(1))
    return mapElements<float, 2, 1>(context, "sgd", {p}, {p, grad}, Sgd<1>{{}, scalars.list, scalars.group, momentum, decay, {}});
  const View& m = args.typed(1, "m", DType::F32, 1, p.cols);
  mapElements<float, 3, 2>(context, "sgd", {p, m}, {p, grad, m}, Sgd<2>{{}, scalars.list, scalars.group, momentum, decay, {}});
}

}  // namespace unsloth::cuda::ops
