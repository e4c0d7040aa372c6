#include <algorithm>

#include "element.cuh"
#include "launch.cuh"
#include "operands.h"
#include "ops.h"

namespace unsloth::cuda {
namespace {

constexpr int dotThreads = 1024;

/** out (+)= Σ a_i·b_i: each thread sums every 1024th product, then a tree of fixed shape. 8 bytes read per element. */
__global__ void dotKernel(double* out, const float* a, const float* b, int64_t count, bool accumulate) {
  awaitPrior();
  __shared__ double sums[dotThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += dotThreads) sum += static_cast<double>(a[i]) * b[i];
  sums[threadIdx.x] = sum;
  for (int half = dotThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *out = accumulate ? *out + sums[0] : sums[0];
}

__global__ void clipScaleKernel(double* scalars, const double* squares, const double* loss, double most) {
  awaitPrior();
  const double scale = most > 0 ? fmin(1.0, most / (sqrt(*squares) + 1e-6)) : 1.0;
  *scalars = isfinite(*squares) && isfinite(*loss) ? scale : nan("");
}

/** y[r, c] = scaling[0]·x[r, c]. 8 bytes per element; a list of labelled rows at most. */
__global__ void scaleLossKernel(float* y, int64_t ldY, const float* x, int64_t ldX, int64_t rows, int64_t cols, const double* scaling) {
  awaitPrior();
  const int64_t count = rows * cols, step = int64_t{gridDim.x} * blockDim.x;
  const auto scale = static_cast<float>(*scaling);
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t r = i / cols, c = i - r * cols;
    y[r * ldY + c] = scale * x[r * ldX + c];
  }
}

/** One thread; see `updateScale` in commands.ts. `rows` of `width` choices. */
__global__ void updateScaleKernel(double* scalars, double* scaling, const double* squares, const double* loss, const double* choices, int64_t rows,
                                  int width, int interval, double most) {
  awaitPrior();
  const double scale = scaling[0], good = scaling[1], skipped = scaling[2];
  int64_t row = static_cast<int64_t>(skipped - choices[0]);
  row = row < 0 ? 0 : row < rows ? row : rows - 1;
  for (int i = 0; i < width; ++i) scalars[1 + i] = choices[1 + row * width + i];
  scaling[3] = scale;
  if (!isfinite(*squares) || !isfinite(*loss)) {
    scalars[0] = nan("");
    scaling[0] = 0.5 * scale;
    scaling[1] = 0;
    scaling[2] = skipped + 1;
    return;
  }
  const double clip = most > 0 ? fmin(1.0, most / (sqrt(*squares) / scale + 1e-6)) : 1.0;
  scalars[0] = clip / scale;
  const bool grows = good + 1 >= interval;
  if (grows && 2 * scale <= 0x1p127) scaling[0] = 2 * scale;
  scaling[1] = grows ? 0 : good + 1;
}

}  // namespace

namespace ops {

void dot(const Call& call, const Context& context) {
  const Operands args(call, "dot", 3, 1, 0);
  const View& a = args.shaped(1, "a", Operands::any, Operands::any);
  const int64_t count = a.rows * a.cols;
  launchDependent(context, "dot", dotKernel, {1, dotThreads}, const_cast<double*>(args.list<double>(0, "out", DType::F64, 1)),
                  args.list<float>(1, "a", DType::F32, count), args.list<float>(2, "b", DType::F32, count), count,
                  call.i(0) != 0);
}

void clipScale(const Call& call, const Context& context) {
  const Operands args(call, "clipScale", 3, 0, 1);
  launchDependent(context, "clipScale", clipScaleKernel, {1, 1},
                  const_cast<double*>(args.list<double>(0, "scalars", DType::F64, 1)),
                  args.list<double>(1, "squares", DType::F64, 1), args.list<double>(2, "loss", DType::F64, 1), call.f(0));
}

void scaleLoss(const Call& call, const Context& context) {
  const Operands args(call, "scaleLoss", 3, 0, 0);
  const View& y = args.typed(0, "y", DType::F32);
  const View& x = args.typed(1, "x", DType::F32, y.rows, y.cols);
  const double* scaling = args.list<double>(2, "scaling", DType::F64, 1);
  const int64_t count = y.rows * y.cols;
  if (count == 0) return;
  constexpr int threads = 256;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + threads - 1) / threads, 1024));
  launchDependent(context, "scaleLoss", scaleLossKernel, {blocks, threads}, y.f32(), y.ld, x.f32(), x.ld, y.rows, y.cols,
                  scaling);
}

void updateScale(const Call& call, const Context& context) {
  const Operands args(call, "updateScale", 5, 2, 1);
  const int interval = call.i(0), width = call.i(1);
  args.require(interval > 0 && width > 0, "interval and width are positive");
  auto* scalars = const_cast<double*>(args.list<double>(0, "scalars", DType::F64, 1 + width));
  auto* scaling = const_cast<double*>(args.list<double>(1, "scaling", DType::F64, 4));
  const double* choices = args.list<double>(4, "choices", DType::F64, 1 + width);
  const int64_t rows = (call.t(4).rows * call.t(4).cols - 1) / width;
  launchDependent(context, "updateScale", updateScaleKernel, {1, 1}, scalars, scaling,
                  args.list<double>(2, "squares", DType::F64, 1), args.list<double>(3, "loss", DType::F64, 1), choices, rows,
                  width, interval, call.f(0));
}

}  // namespace ops
}  // namespace unsloth::cuda
